"""One log line per finished request, where the operator wants it."""

import logging

from octavo_protocol.outputs import RequestOutput
from octavo_runtime.server.options import ApiOptions

logger = logging.getLogger(__name__)


class RequestLog:
    """Collects what the line says. Texts are kept and written only with `enable_log_outputs`."""

    def __init__(self, options: ApiOptions, prompt: str | None) -> None:
        self._options = options
        self._prompt = prompt or ""
        self._texts: dict[int, str] = {}
        self._reasons: dict[int, str] = {}
        self._latest: RequestOutput | None = None

    def add(self, output: RequestOutput) -> None:
        self._latest = output
        for completion in output.outputs:
            if completion.finish_reason is not None:
                self._reasons[completion.index] = completion.finish_reason
            if self._options.enable_log_outputs:
                said = self._texts.get(completion.index, "")
                self._texts[completion.index] = said + completion.text

    def write(self) -> None:
        """An unfinished request was ended by its client or an error."""
        output = self._latest
        reasons = ",".join(self._reasons.values()) or "aborted"
        if output is None or output.metrics is None:
            logger.info("finished: %s, no token came", reasons)
            return
        stats = output.metrics
        logger.info(
            "finished: %s, %d prompt tokens (%d cached), %d output tokens, "
            "first after %.3f s, all after %.3f s",
            reasons,
            len(output.prompt_token_ids or ()),
            output.num_cached_tokens or 0,
            stats.num_generation_tokens,
            stats.first_token_latency,
            stats.first_token_latency + stats.last_token_ts - stats.first_token_ts,
        )
        if self._options.enable_log_outputs:
            limit = self._options.max_log_len
            texts = [text[:limit] for text in self._texts.values()]
            logger.info("prompt: %r, outputs: %r", self._prompt[:limit], texts)
