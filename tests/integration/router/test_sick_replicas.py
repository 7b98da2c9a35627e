"""Replicas that are silent, wrong or slow while their heartbeats say that all is well."""

import asyncio
import signal
import sys

import pytest
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until

from octavo_router import stalls

pytestmark = pytest.mark.integration


async def stream(router: RunningRouter) -> str:
    """The name of the replica that answered."""
    body = {"model": "fake", "prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
        return response.headers["x-octavo-route"].split(";")[0].removeprefix("replica=")


async def ejections(router: RunningRouter, cause: str) -> float:
    return await router.metric(f'octavo_router_ejections_total{{cause="{cause}"}}')


async def explained(router: RunningRouter) -> dict[str, str]:
    body = {"model": "fake", "prompt": "hello"}
    async with router.client.post("/debug/route", json=body) as response:
        left_out: dict[str, str] = (await response.json())["left_out"]
        return left_out


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "_PATIENCE", (0.3, 1.0))


@pytest.mark.usefixtures("impatient")
async def test_requests_leave_a_silent_replica_and_later_ones_avoid_it(
    cluster: RouterCluster,
) -> None:
    silent = await cluster.replica("silent")
    await cluster.replica("good")
    router = await cluster.router(2, policy="round-robin")
    silent.behaviour.is_stalled = True
    assert await asyncio.gather(*(stream(router) for _ in range(6))) == ["good"] * 6
    assert await ejections(router, "stalled") == 1
    assert [await stream(router) for _ in range(4)] == ["good"] * 4
    await until(lambda: silent.seen.num_open == 0)
    left_out = await explained(router)
    assert left_out["silent"].startswith("ejected: stalled, ")


@pytest.mark.usefixtures("impatient")
async def test_requests_stay_where_all_are_silent(cluster: RouterCluster) -> None:
    replicas = [await cluster.replica(name) for name in ("a", "b")]
    for replica in replicas:
        replica.behaviour.first_token_s = 2.5
    router = await cluster.router(2, policy="round-robin")
    assert sorted(await asyncio.gather(stream(router), stream(router))) == ["a", "b"]
    assert await ejections(router, "stalled") == 0
    assert [len(replica.seen.requests) for replica in replicas] == [1, 1]


@pytest.mark.usefixtures("impatient")
async def test_without_a_retry_left_requests_wait(cluster: RouterCluster) -> None:
    slow = await cluster.replica("slow")
    await cluster.replica("good")
    slow.behaviour.first_token_s = 2.0
    router = await cluster.router(2, policy="round-robin")
    while router.deployment.retries.retry():
        pass
    router.deployment.retries._filled_at += 60  # time gives none back for a minute
    assert sorted(await asyncio.gather(stream(router), stream(router))) == ["good", "slow"]


async def test_a_replica_that_is_slower_than_it_says_is_left_alone(
    cluster: RouterCluster,
) -> None:
    slow = await cluster.replica("slow")
    await cluster.replica("good")
    slow.behaviour.first_token_s = 1.3
    router = await cluster.router(2, policy="round-robin")
    routes = await asyncio.gather(*(stream(router) for _ in range(16)))
    assert sorted(routes) == ["good"] * 8 + ["slow"] * 8
    assert await ejections(router, "slow") == 1
    assert [await stream(router) for _ in range(4)] == ["good"] * 4
    assert (await explained(router))["slow"].startswith("ejected: slow, ")


async def test_a_replica_that_only_says_500_is_left_alone(cluster: RouterCluster) -> None:
    bad, good = await cluster.replica("bad"), await cluster.replica("good")
    router = await cluster.router(2, policy="round-robin")
    await router.completion("hello")
    bad.behaviour.status = 500
    for _ in range(20):
        status, _, _ = await router.completion("hello")
        assert status == 200
    assert await ejections(router, "errors") == 1
    assert len(bad.seen.requests) <= 6
    assert len(good.seen.requests) >= 20
    assert (await explained(router))["bad"].startswith("ejected: errors, ")


async def test_an_answer_of_500_from_all_is_no_ones_fault(cluster: RouterCluster) -> None:
    replicas = [await cluster.replica(name) for name in ("a", "b")]
    router = await cluster.router(2, policy="round-robin")
    for replica in replicas:
        replica.behaviour.status = 500
    for _ in range(20):
        assert (await router.completion("hello"))[0] == 503
    assert await ejections(router, "errors") == 0
    for replica in replicas:
        replica.behaviour.status = None
    assert (await router.completion("hello"))[0] == 200


async def test_one_request_tries_a_replica_that_was_ejected(cluster: RouterCluster) -> None:
    bad = await cluster.replica("bad")
    await cluster.replica("good")
    router = await cluster.router(2, policy="round-robin")
    bad.behaviour.drop_after_chunks = 0
    while await ejections(router, "broken") == 0:
        await stream(router)
    num_before = len(bad.seen.requests)
    bad.behaviour.drop_after_chunks = None
    bad.behaviour.first_token_s = 0.5
    await until(lambda: len(router.deployment.replicas.usable("fake")) == 2)
    routes = await asyncio.gather(*(stream(router) for _ in range(8)))
    assert sorted(routes) == ["bad"] + ["good"] * 7
    assert len(bad.seen.requests) == num_before + 1
    assert await explained(router) == {}


_REPLICA = """
import asyncio, sys
from octavo_protocol.keys import Keys
from tests.fakes.fake_replica import FakeReplica

async def serve():
    async with FakeReplica("stopped", redis_url=sys.argv[1], keys=Keys("default", "default")):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""


@pytest.mark.usefixtures("impatient")
async def test_streams_and_whole_answers_leave_a_process_that_was_stopped(
    cluster: RouterCluster,
) -> None:
    """It still accepts connections: the kernel does. Its heartbeats end a moment later."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _REPLICA, cluster.redis.url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        await cluster.replica("good")
        router = await cluster.router(2, policy="round-robin")
        process.send_signal(signal.SIGSTOP)
        asked = [stream(router) for _ in range(2)] + [whole(router) for _ in range(2)]
        assert await asyncio.gather(*asked) == ["good"] * 4
        assert await ejections(router, "stalled") == 1
    finally:
        process.kill()
        await process.wait()


async def whole(router: RunningRouter) -> str:
    status, _, route = await router.completion("hello")
    assert status == 200
    return route.split(";")[0].removeprefix("replica=")
