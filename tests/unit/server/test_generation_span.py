"""What the span of one generation tells."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from octavo_protocol.outputs import CompletionOutput, RequestOutput, RequestStateStats
from octavo_protocol.spans import NO_SPAN, AttributeValue, Span
from octavo_runtime.server.generation_span import GenerationSpan

STATS = RequestStateStats(
    queued_ts=10.0,
    scheduled_ts=12.0,
    first_token_ts=15.0,
    last_token_ts=21.0,
    first_token_latency=5.5,
    num_generation_tokens=7,
)


class Noted(Span):
    """Keeps what it is told. num_open: parts that have not ended."""

    def __init__(self) -> None:
        self.attributes: dict[str, AttributeValue] = {}
        self.num_open = 0

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.attributes |= attributes

    @contextmanager
    def child(self, name: str, *, is_client: bool = False) -> Iterator[Span]:
        assert (name, is_client) == ("llm_request", False)
        self.num_open += 1
        yield self
        self.num_open -= 1


def output(finish_reason: str | None) -> RequestOutput:
    completion = CompletionOutput(0, "secret", [1], None, None, finish_reason=finish_reason)
    return RequestOutput(
        "r", "secret", [1, 2, 3], None, [completion], True, metrics=STATS, num_cached_tokens=2
    )


def test_a_span_has_times_and_token_counts_and_no_text() -> None:
    noted = Noted()
    span = GenerationSpan(noted)
    span.add(output(None))
    span.add(output("stop"))
    assert noted.num_open == 1
    span.end()
    assert noted.num_open == 0
    assert noted.attributes == {
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.cached_tokens": 2,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.response.finish_reasons": "stop",
        "gen_ai.latency.time_in_queue": 2.0,
        "gen_ai.latency.time_in_model_prefill": 3.0,
        "gen_ai.latency.time_in_model_decode": 6.0,
        "gen_ai.latency.time_to_first_token": 5.5,
    }


def test_a_generation_without_an_end_was_aborted() -> None:
    noted = Noted()
    GenerationSpan(noted).end()
    assert noted.attributes == {"octavo.aborted": True}


def test_without_a_span_nothing_is_kept() -> None:
    span = GenerationSpan(NO_SPAN)
    span.add(output("stop"))
    span.end()
