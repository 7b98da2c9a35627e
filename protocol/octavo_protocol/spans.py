"""What is traced of a request, without saying where it goes: nothing at all unless it is asked for.

Whoever answers a request finds its span with `current_span`. `tracing.py` sends spans to
OpenTelemetry; without it a span does nothing. Spans carry names, numbers and ids: no prompts, no
answers, no keys.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

AttributeValue = str | int | float | bool
TRACE_CONTEXT_HEADERS = ("traceparent", "tracestate")


class Span:
    """Something that takes time, as seen by whoever looks at traces. This one nobody sees."""

    @property
    def headers(self) -> Mapping[str, str]:
        """W3C trace context for requests to others that belong to this span."""
        return {}

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Adds to what is told of it."""

    def fail(self, why: str) -> None:
        """It did not come to a good end."""

    @contextmanager
    def child(self, name: str, *, is_client: bool = False) -> Iterator["Span"]:
        """A part of it, which lasts as long as the context. is_client: it waits for another
        process.
        """
        yield self


class Tracing(Protocol):
    """Where spans go."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[Span]:
        """The span of one HTTP request; part of the trace that `headers` belong to, if any."""

    def close(self) -> None:
        """Sends what is left. Blocks, for seconds at most where nobody takes it."""


NO_SPAN = Span()
span_var: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def current_span() -> Span:
    """The span of the request that is being answered."""
    return span_var.get()
