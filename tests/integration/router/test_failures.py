"""Replicas and Redis fail while requests run: none that had not streamed is lost."""

import asyncio
from typing import Any

import pytest
from tests.fakes.fake_replica import FakeReplica, words
from tests.fakes.router_cluster import KEYS, RouterCluster, RunningRouter, running_router, until

from octavo_protocol.keys import Keys

pytestmark = pytest.mark.integration

PROMPT = "the quick brown fox jumps over the lazy dog " * 8


async def stream(router: RunningRouter, **fields: Any) -> tuple[int, bytes]:
    body = {"model": "fake", "prompt": "hello", "stream": True, **fields}
    async with router.client.post("/v1/completions", json=body) as response:
        return response.status, await response.read()


async def test_a_killed_replica_loses_no_request_that_had_not_streamed(
    cluster: RouterCluster,
) -> None:
    replicas = [await cluster.replica(name) for name in "ab"]
    for replica in replicas:
        replica.behaviour.first_token_s = 0.3
    router = await cluster.router(2)
    waiting = [asyncio.create_task(stream(router)) for _ in range(20)]
    waiting += [asyncio.create_task(stream(router, stream=False)) for _ in range(20)]
    await until(lambda: sum(len(r.seen.requests) for r in replicas) == 40)
    assert replicas[0].seen.num_open > 0

    await replicas[0].kill()

    answers = await asyncio.gather(*waiting)
    assert [status for status, _ in answers] == [200] * 40
    assert all(b"error" not in body for _, body in answers)
    assert await router.metric("octavo_router_retries_total") > 0


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("status", [500, 503, None])
async def test_a_failure_before_the_first_byte_is_made_good_elsewhere(
    cluster: RouterCluster, is_stream: bool, status: int | None
) -> None:
    bad, _ = await cluster.replica("bad"), await cluster.replica("good")
    bad.behaviour.status = status
    bad.behaviour.drop_after_chunks = 0
    router = await cluster.router(2, policy="round-robin")
    body = {"model": "fake", "prompt": "hello", "stream": is_stream}
    async with router.client.post("/v1/completions", json=body) as response:
        answer = await response.read()
    assert response.status == 200
    assert b"w7" in answer
    assert response.headers["x-octavo-route"].startswith("replica=good;")
    assert response.headers["x-octavo-route"].endswith(";attempts=2")
    assert len(bad.seen.requests) == 1  # never the same one twice


async def test_a_whole_answer_that_breaks_in_its_body_is_made_good_elsewhere(
    cluster: RouterCluster,
) -> None:
    bad, _ = await cluster.replica("bad"), await cluster.replica("good")
    bad.behaviour.drop_after_chunks = 3
    router = await cluster.router(2, policy="round-robin")
    status, body, route = await router.completion("hello")
    assert (status, body["choices"][0]["text"]) == (200, words(8))
    assert route.startswith("replica=good;")


async def test_a_broken_stream_that_cannot_go_on_ends_with_an_error_event(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.drop_after_chunks = 3
    replica.behaviour.chunk_s = 0.02
    replica.behaviour.is_traced = False
    router = await cluster.router(1)
    status, body = await stream(router)
    events = body.decode().strip().split("\n\n")
    assert status == 200
    assert len([event for event in events if "choices" in event]) == 3
    assert events[-2].startswith('data: {"error":{"message":')
    assert events[-1] == "data: [DONE]"
    assert await router.metric("octavo_router_broken_streams_total") == 1


async def test_a_refusal_of_the_client_is_relayed_as_it_is(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    await cluster.replica("b")
    replica.behaviour.status = 422
    router = await cluster.router(2, policy="round-robin")
    status, body, _ = await router.completion("hello")
    assert (status, body["error"]["message"]) == (422, "as told")


async def test_with_every_replica_failing_the_client_gets_a_503(cluster: RouterCluster) -> None:
    replicas = [await cluster.replica(name) for name in "abc"]
    for replica in replicas:
        replica.behaviour.status = 503
    router = await cluster.router(3)
    status, body, _ = await router.completion("hello")
    assert (status, body["error"]["type"]) == (503, "service_unavailable")
    assert [len(replica.seen.requests) for replica in replicas] == [1, 1, 1]


async def test_a_draining_replica_gets_nothing(cluster: RouterCluster) -> None:
    leaving, staying = await cluster.replica("leaving"), await cluster.replica("staying")
    router = await cluster.router(2, policy="round-robin")
    await leaving.set_draining()
    await until(lambda: len(router.deployment.replicas.usable("fake")) == 1)
    for _ in range(4):
        assert (await router.completion("hello"))[0] == 200
    assert (len(leaving.seen.requests), len(staying.seen.requests)) == (0, 4)


async def test_redis_killed_and_restarted_empty_costs_no_request(cluster: RouterCluster) -> None:
    replicas = [await cluster.replica(name) for name in "ab"]
    router = await cluster.router(2)
    _, _, before = await router.completion(PROMPT)
    await until(lambda: router.deployment.index.num_entries > 0)
    num_entries = router.deployment.index.num_entries
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def load() -> None:
        while not is_over.is_set():
            statuses.append((await router.completion("hello"))[0])

    clients = [asyncio.create_task(load()) for _ in range(4)]
    cluster.redis.child.kill()
    await until(lambda: router.state.discovery.is_degraded)
    while_away = len(statuses)
    await until(lambda: len(statuses) > while_away + 20)
    cluster.redis.start()
    snapshots = [replica.presence.num_snapshots for replica in replicas if replica.presence]
    await until(lambda: not router.state.discovery.is_degraded)
    await until(
        lambda: all(
            replica.presence and replica.presence.num_snapshots > num
            for replica, num in zip(replicas, snapshots, strict=True)
        )
    )
    await until(lambda: router.deployment.index.num_entries >= num_entries)
    is_over.set()
    await asyncio.gather(*clients)

    assert set(statuses) == {200}
    _, body, route = await router.completion(PROMPT)
    assert route.split(";")[0] == before.split(";")[0]
    assert f"cached={body['usage']['prompt_tokens_details']['cached_tokens']};" in route


async def test_a_gap_in_the_events_is_healed_by_a_snapshot(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    await router.completion(PROMPT)
    await until(lambda: router.deployment.index.num_entries > 0)
    assert replica.presence is not None
    num_snapshots = replica.presence.num_snapshots
    gone = list(replica.presence.cached)

    await replica.presence.evict(gone, is_told=False)
    await replica.presence.store([b"x" * 16])

    presence = replica.presence
    await until(lambda: presence.num_snapshots > num_snapshots)
    await until(lambda: router.deployment.index.match([b"x" * 16]) != {})
    assert router.deployment.index.num_entries == 1


async def test_a_replica_whose_cache_lies_is_asked_for_a_snapshot(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    await router.completion(PROMPT)
    await until(lambda: router.deployment.index.num_entries > 0)
    assert replica.presence is not None
    num_snapshots = replica.presence.num_snapshots
    replica.behaviour.cached_tokens = 0
    for _ in range(5):
        await router.completion(PROMPT)
    presence = replica.presence
    await until(lambda: presence.num_snapshots > num_snapshots)
    assert await router.metric("octavo_router_distrusted_replicas_total") == 1


async def test_replicas_at_fixed_addresses_serve_without_redis() -> None:
    async with (
        FakeReplica("a", keys=Keys("n", "d")) as a,
        FakeReplica("b", keys=KEYS) as b,
        running_router(replica_urls=(a.record.url, b.record.url)) as router,
    ):
        await until(lambda: len(router.deployment.replicas) == 2)
        for _ in range(10):
            assert (await router.completion("hello"))[0] == 200
        await a.kill()
        for _ in range(10):
            assert (await router.completion("hello"))[0] == 200
        assert len(b.seen.requests) >= 10
