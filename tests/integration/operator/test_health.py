"""The probes and metrics of the operator over HTTP."""

import aiohttp
import pytest

from octavo_operator.health import Health
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.queue import Key
from octavo_protocol.errors import ConfigError
from octavo_protocol.records import ReplicaRecord

pytestmark = pytest.mark.integration

RECORD = ReplicaRecord(
    replica_id="r",
    incarnation="i",
    url="u",
    model="m",
    cache_model="m",
    block_size=16,
    num_blocks=1,
    max_model_len=16,
    waiting_tokens=70,
    running=3,
)


async def fetch(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_probes_say_what_is_wrong() -> None:
    health = Health(bytes)
    async with health.serve(0) as port:
        assert await fetch(port, "/healthz") == (200, "ok\n")
        assert await fetch(port, "/readyz") == (503, "starting\n")
        health.alive = lambda: "a turn goes on for 700 s"
        health.ready = lambda: ""
        assert await fetch(port, "/healthz") == (503, "a turn goes on for 700 s\n")
        assert await fetch(port, "/readyz") == (200, "ok\n")


async def test_a_port_that_is_taken_is_an_error_that_names_the_flag() -> None:
    async with Health(bytes).serve(0) as port:
        with pytest.raises(ConfigError, match="--health-port"):
            async with Health(bytes).serve(port):
                pass


async def test_metrics_are_measured_when_they_are_read_and_end_with_the_deployment() -> None:
    metrics, key = OperatorMetrics(), Key("team", "chat")
    health = Health(metrics.render)

    def measure() -> None:
        metrics.measure_deployment(key, desired=2, ready=1, replicas=[RECORD, RECORD])
        metrics.count_deployments({"True": 1})

    health.measure = measure
    labels = '{deployment="chat",namespace="team"}'
    async with health.serve(0) as port:
        _, text = await fetch(port, "/metrics")
        assert {
            f"octavo_operator_desired_replicas{labels} 2.0",
            f"octavo_operator_ready_replicas{labels} 1.0",
            f"octavo_operator_waiting_tokens{labels} 140.0",
            f"octavo_operator_running_requests{labels} 6.0",
            'octavo_operator_deployments{ready="True"} 1.0',
            'octavo_operator_deployments{ready="False"} 0.0',
        } <= set(text.splitlines())
        health.measure = lambda: metrics.forget(key)
        _, text = await fetch(port, "/metrics")
        assert labels not in text
