"""One trace shows a request's way through router and replicas, with every attempt."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.fakes.fake_replica import FakeReplica
from tests.fakes.otlp_collector import OtlpCollector, attributes_of
from tests.fakes.router_cluster import RouterCluster, RunningRouter, running_router, until
from tests.integration.replica.harness import Replica

from octavo_protocol.continuation import CONTINUE

pytestmark = pytest.mark.integration

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {
    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    "x-request-id": "mine",
    "authorization": "Bearer secret-key",
}
SECRETS = ("secret", "prompt words")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent after 50 ms."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")


async def ask(router: RunningRouter, **fields: Any) -> bytes:
    body = {"prompt": "prompt words", "stream": True, **fields}
    async with router.client.post("/v1/completions", json=body, headers=HEADERS) as response:
        assert response.status == 200
        return await response.read()


def by_id(collector: OtlpCollector) -> dict[bytes, Span]:
    return {span.span_id: span for _, span in collector.spans}


def sent_by(replica: FakeReplica) -> str:
    """The span that the replica's first request belongs to."""
    (first, *_) = replica.seen.requests
    version, trace, span, flags = first.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert first.headers["x-request-id"] == "mine"
    return span


async def test_a_retry_and_a_continuation_are_attempts_of_one_trace(cluster: RouterCluster) -> None:
    refusing, breaking, good = [await cluster.replica(f"{n}") for n in ("a", "b", "c")]
    refusing.behaviour.status = 503
    breaking.behaviour.drop_after_chunks = 3
    async with OtlpCollector() as collector:
        router = await cluster.router(3, policy="round-robin", otlp_traces_endpoint=collector.url)
        await ask(router)
        await until(lambda: len(collector.spans) == 4)
    assert {name for name, _ in collector.spans} == {"octavo-router"}
    spans = by_id(collector)
    (whole,) = [span for span in spans.values() if span.name == "POST /v1/completions"]
    attempts = {
        attributes_of(span)["octavo.replica"]: span for span in spans.values() if span is not whole
    }
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert whole.parent_span_id.hex() == "b7ad6b7169203331"
    for replica in (refusing, breaking, good):
        span = attempts[replica.record.replica_id]
        assert span.parent_span_id == whole.span_id
        assert span.span_id.hex() == sent_by(replica)
    assert attempts["a"].status.message == "status 503"
    assert attempts["b"].status.message != ""
    assert attempts["c"].status.message == ""
    assert attributes_of(attempts["c"])["octavo.is_continuation"] is True
    assert good.seen.requests[0].path.startswith(CONTINUE)
    told = attributes_of(whole)
    assert told["http.response.status_code"] == 200
    assert told["octavo.request_id"] == "mine"
    assert told["octavo.deployment"] == "default/default"
    assert told["octavo.policy"] == "round-robin"
    assert told["octavo.replica"] == "c"
    assert 0 <= told["octavo.queue_s"] < 5  # type: ignore[operator]
    assert not any(secret in str(span) for span in spans.values() for secret in SECRETS)


async def test_router_and_replica_tell_one_trace(tmp_path: Path) -> None:
    async with OtlpCollector() as collector:
        replica = Replica(tmp_path, step_s=0.01, otlp_traces_endpoint=collector.url)
        try:
            await asyncio.to_thread(replica.wait_ready)
            async with running_router(
                replica_urls=(replica.url,), otlp_traces_endpoint=collector.url
            ) as router:
                await until(lambda: len(router.deployment.replicas) == 1)
                for stream in (True, False):
                    await ask(router, max_tokens=5, stream=stream)
                await until(lambda: len(collector.spans) == 8)
            assert '"request_id": "mine"' in replica.log  # the access log of the replica
        finally:
            replica.close()
    spans = by_id(collector)
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    generated = [span for span in spans.values() if span.name == "llm_request"]
    assert len(generated) == 2
    for span in generated:
        served = spans[span.parent_span_id]
        attempt = spans[served.parent_span_id]
        whole = spans[attempt.parent_span_id]
        assert (served.name, attempt.name, whole.name) == (
            "POST /v1/completions",
            "attempt",
            "POST /v1/completions",
        )
        told = attributes_of(span)
        assert told["gen_ai.usage.output_tokens"] == 5
        assert told["gen_ai.usage.input_tokens"] > 0  # type: ignore[operator]
        assert told["gen_ai.response.finish_reasons"] == "length"
        for name in ("time_to_first_token", "time_in_model_decode"):
            assert 0 <= told[f"gen_ai.latency.{name}"] < 10  # type: ignore[operator]
    names = [name for name, _ in collector.spans]
    assert (names.count("octavo-router"), names.count("octavo-replica")) == (4, 4)
    assert not any(secret in str(span) for span in spans.values() for secret in SECRETS)


async def test_a_clients_trace_reaches_the_replica_though_the_router_traces_nothing(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    await ask(await cluster.router(1))
    assert sent_by(replica) == "b7ad6b7169203331"


async def test_a_collector_that_is_away_costs_no_request(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    begun = time.monotonic()
    async with running_router(
        redis_url=cluster.redis.url, otlp_traces_endpoint="http://127.0.0.1:9/v1/traces"
    ) as router:
        await until(lambda: len(router.deployment.replicas) == 1)
        for _ in range(5):
            assert (await ask(router)).endswith(b"data: [DONE]\n\n")
    assert time.monotonic() - begun < 10
