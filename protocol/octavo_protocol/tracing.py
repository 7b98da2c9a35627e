"""Spans by OpenTelemetry over OTLP/HTTP, for servers that are asked for traces. Needs
`octavo[otel]`, which is imported only then.

OpenTelemetry's own variables count: OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*, OTEL_SDK_DISABLED. Spans are sent by a thread of their own; a
collector that is away costs spans, never a request.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from octavo_protocol.asgi import App, Message, Receive, Scope, Send
from octavo_protocol.errors import ConfigError
from octavo_protocol.spans import (
    TRACE_CONTEXT_HEADERS,
    AttributeValue,
    Span,
    Tracing,
    span_var,
)

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

_CLOSE_S = 3.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def open_tracing(endpoint: str | None, service: str) -> Tracing | None:
    """None where no traces are asked for. endpoint: URL that takes OTLP/HTTP; None: as the
    variables say. service: what the server calls itself, unless OTEL_SERVICE_NAME does.

    Raises `ConfigError` where the endpoint is given and the packages are missing.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or not (endpoint or any(map(os.environ.get, _ENDPOINTS))):
        return None
    try:
        return OtelTracing(_provider(endpoint, service))
    except ImportError as error:
        message = f"traces need OpenTelemetry: pip install 'octavo[otel]' ({error})"
        if endpoint:
            raise ConfigError(message) from error
        logger.warning("%s; OTEL_EXPORTER_OTLP_ENDPOINT is ignored", message)
        return None


def _provider(endpoint: str | None, service: str) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = "OTEL_SERVICE_NAME" in os.environ
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class OtelTracing:
    """Implements `Tracing` over a tracer provider, which it closes."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("octavo")

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = TraceContextTextMapPropagator().extract(dict(headers))
        with _ended(self._tracer.start_span(name, context, SpanKind.SERVER)) as span:
            yield _OtelSpan(self._tracer, span)

    def close(self) -> None:
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)  # it would try for longer where nobody takes the spans


class _OtelSpan(Span):
    def __init__(self, tracer: "trace.Tracer", span: "trace.Span") -> None:
        self._tracer = tracer
        self._span = span

    @property
    def headers(self) -> Mapping[str, str]:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(self._span))
        return headers

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        if self._span.is_recording():  # the work may go on after the request
            self._span.set_attributes(attributes)

    def fail(self, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        if self._span.is_recording():
            self._span.set_status(Status(StatusCode.ERROR, why))

    @contextmanager
    def child(self, name: str, *, is_client: bool = False) -> Iterator[Span]:
        from opentelemetry.trace import SpanKind, set_span_in_context

        kind = SpanKind.CLIENT if is_client else SpanKind.INTERNAL
        context = set_span_in_context(self._span)
        with _ended(self._tracer.start_span(name, context, kind)) as span:
            yield _OtelSpan(self._tracer, span)


@contextmanager
def _ended(span: "trace.Span") -> Iterator["trace.Span"]:
    try:
        yield span
    finally:
        span.end()


class TracingMiddleware:
    """Every POST is a span, the current one while it is answered. routes: the paths that there
    are; others do not become names.
    """

    def __init__(self, app: App, tracing: Tracing, routes: frozenset[str]) -> None:
        self.app = app
        self._tracing = tracing
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "unknown route"
        with self._tracing.request(f"POST {route}", _trace_context(scope)) as span:
            span.set({"http.request.method": "POST", "http.route": route})
            span.set({"octavo.request_id": scope["state"]["request_id"]})
            token = span_var.set(span)
            try:
                await self.app(scope, receive, _noting(span, send))
            finally:
                span_var.reset(token)


def _trace_context(scope: Scope) -> dict[str, str]:
    pairs = ((name.decode("latin-1"), value) for name, value in scope["headers"])
    return {name: value.decode("latin-1") for name, value in pairs if name in TRACE_CONTEXT_HEADERS}


def _noting(span: Span, send: Send) -> Send:
    """Notes the status on `span`."""

    async def noted(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set({"http.response.status_code": status})
            if status >= 500:
                span.fail(f"status {status}")
        await send(message)

    return noted
