"""What traces tell of one prompt's generation: times in the engine, and token counts.

Names are those of OpenTelemetry's conventions for generative AI, and vLLM's for what those leave
out (`gen_ai.latency.*`, in seconds).
"""

from octavo_protocol.outputs import RequestOutput, RequestStateStats
from octavo_protocol.spans import NO_SPAN, AttributeValue, Span


class GenerationSpan:
    """A part of `request`, from now on until `end`."""

    def __init__(self, request: Span) -> None:
        self._is_traced = request is not NO_SPAN
        if self._is_traced:
            self._context = request.child("llm_request")
            self._span = self._context.__enter__()
        self._latest: RequestOutput | None = None
        self._reasons: dict[int, str] = {}

    def add(self, output: RequestOutput) -> None:
        """Tokens came."""
        if not self._is_traced:
            return
        self._latest = output
        for completion in output.outputs:
            if completion.finish_reason is not None:
                self._reasons[completion.index] = completion.finish_reason

    def end(self) -> None:
        """The generation is over, however it ended."""
        if not self._is_traced:
            return
        if self._latest is not None:
            self._span.set(_attributes(self._latest, self._reasons))
        if not self._reasons:
            self._span.set({"octavo.aborted": True})
        self._context.__exit__(None, None, None)


def _attributes(output: RequestOutput, reasons: dict[int, str]) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": len(output.prompt_token_ids or ()),
        "gen_ai.usage.cached_tokens": output.num_cached_tokens or 0,
        "gen_ai.response.finish_reasons": ",".join(reasons[each] for each in sorted(reasons)),
    }
    if output.metrics is not None:
        attributes |= _times(output.metrics)
    return attributes


def _times(stats: RequestStateStats) -> dict[str, AttributeValue]:
    told: dict[str, AttributeValue] = {
        "gen_ai.usage.output_tokens": stats.num_generation_tokens,
        "gen_ai.latency.time_in_model_decode": stats.last_token_ts - stats.first_token_ts,
        "gen_ai.latency.time_to_first_token": stats.first_token_latency,
    }
    if stats.scheduled_ts:  # 0: the engine does not say
        told["gen_ai.latency.time_in_queue"] = stats.scheduled_ts - stats.queued_ts
        told["gen_ai.latency.time_in_model_prefill"] = stats.first_token_ts - stats.scheduled_ts
    return told
