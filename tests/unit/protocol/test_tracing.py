"""Spans say what happened to a request, and nothing of them is needed or paid for when off."""

import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from octavo_protocol.errors import ConfigError
from octavo_protocol.spans import NO_SPAN, current_span
from octavo_protocol.tracing import OtelTracing, open_tracing

URL = "http://127.0.0.1:9/v1/traces"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> OtelTracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return OtelTracing(provider)


def test_a_request_belongs_to_its_clients_trace_and_its_parts_to_it(
    tracing: OtelTracing, spans: InMemorySpanExporter
) -> None:
    with tracing.request("POST /v1/completions", {"traceparent": PARENT}) as request:
        request.set({"octavo.tenant": "me"})
        with request.child("attempt", is_client=True) as attempt:
            attempt.fail("status 503")
            headers = attempt.headers
    part, whole = spans.get_finished_spans()
    assert whole.parent is not None
    assert part.parent is not None
    assert whole.context is not None
    assert part.context is not None
    assert f"{whole.parent.trace_id:032x}" == PARENT[3:35]
    assert f"{whole.parent.span_id:016x}" == PARENT[36:52]
    assert part.parent.span_id == whole.context.span_id
    assert headers["traceparent"] == f"00-{PARENT[3:35]}-{part.context.span_id:016x}-01"
    assert (whole.kind, part.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert dict(whole.attributes or {}) == {"octavo.tenant": "me"}
    assert part.status.description == "status 503"


def test_a_span_that_is_over_takes_nothing_more(
    tracing: OtelTracing, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    with tracing.request("POST", {}) as request:
        pass
    request.set({"late": 1})
    request.fail("late")
    (span,) = spans.get_finished_spans()
    assert not span.attributes
    assert caplog.records == []


def test_a_bad_trace_context_begins_a_trace_of_its_own(
    tracing: OtelTracing, spans: InMemorySpanExporter
) -> None:
    with tracing.request("POST", {"traceparent": "00-zz-\x00"}):
        pass
    assert spans.get_finished_spans()[0].parent is None


def test_without_a_span_nothing_happens() -> None:
    assert current_span() is NO_SPAN
    with NO_SPAN.child("attempt") as part:
        part.set({"a": 1})
        part.fail("why")
        assert part is NO_SPAN
    assert NO_SPAN.headers == {}


def test_tracing_is_off_unless_an_endpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert open_tracing(None, "test") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = open_tracing(None, "test")
    assert tracing is not None
    tracing.close()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracing(URL, "test") is None


def test_missing_packages_are_named_where_the_flag_was_given(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otel\]'"):
        open_tracing(URL, "test")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert open_tracing(None, "test") is None
    assert "octavo[otel]" in caplog.text
