"""A client that lost its connection gets the rest of its answer, from any router."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from tests.fakes.event_reader import EventReader
from tests.fakes.fake_replica import FakeReplica, words
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until

from octavo_protocol.continuation import CONTINUE

pytestmark = pytest.mark.integration

BODY: dict[str, Any] = {"model": "fake", "prompt": "hello", "stream": True}
WHOLE: dict[str, Any] = {"model": "fake", "prompt": "hello"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


async def ask(
    router: RunningRouter, body: dict[str, Any] = WHOLE, **headers: str
) -> tuple[int, bytes, str]:
    """(status, body, x-octavo-resumable)."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    async with router.client.post("/v1/completions", json=body, headers=names) as response:
        return (
            response.status,
            await response.read(),
            response.headers.get("x-octavo-resumable", ""),
        )


async def num_answers(router: RunningRouter, how: str) -> float:
    return await router.metric(f'octavo_router_resumable_answers_total{{how="{how}"}}')


async def paced(cluster: RouterCluster, name: str = "a", num_chunks: int = 20) -> FakeReplica:
    replica = await cluster.replica(name)
    replica.behaviour.chunk_s = 0.02
    replica.behaviour.num_chunks = num_chunks
    return replica


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_events_are_numbered_for_those_who_ask(cluster: RouterCluster, path: str) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    reader = EventReader(BODY if path == "/v1/completions" else CHAT, "k", path)
    assert await reader.read(router.client) == 200
    assert reader.text == words(8)
    async with router.client.post(path, json=reader.body) as response:
        plain = await response.text()
        assert "x-octavo-resumable" not in response.headers
    assert "id: " not in plain
    assert plain == "".join(event + "\n\n" for event in reader.events)
    assert len(replica.seen.requests) == 2


@pytest.mark.parametrize("is_traced", [True, False])
async def test_the_rest_comes_from_another_router_while_the_first_goes_on(
    cluster: RouterCluster, is_traced: bool
) -> None:
    replica = await paced(cluster)
    replica.behaviour.is_traced = is_traced
    routers = [await cluster.router(1) for _ in range(2)]
    reader = EventReader(BODY, "k")
    for number in range(5):
        await reader.read(routers[number % 2].client, until=3 * number + 2)
    await reader.read(routers[1].client)
    assert reader.text == words(20)
    assert len(replica.seen.requests) == 1


async def test_an_answer_is_repeated_from_the_beginning(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    routers = [await cluster.router(1) for _ in range(2)]
    readers = [EventReader(BODY, "k") for _ in range(3)]
    for reader, router in zip(readers, [*routers, routers[0]], strict=True):
        await reader.read(router.client)
    assert readers[0].text == words(8)
    assert readers[0].events == readers[1].events == readers[2].events
    assert len(replica.seen.requests) == 1
    await readers[0].read(routers[1].client)  # nothing is left to come
    assert readers[0].events == readers[1].events


@pytest.mark.parametrize("is_stream", [True, False])
async def test_of_many_at_the_same_time_one_generates(
    cluster: RouterCluster, is_stream: bool
) -> None:
    replica = await paced(cluster)
    replica.behaviour.first_token_s = 0.3
    routers = [await cluster.router(1) for _ in range(2)]
    body = BODY if is_stream else WHOLE
    answers = await asyncio.gather(
        *(ask(router, body, idempotency_key="k") for router in routers * 4)
    )
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert len(replica.seen.requests) == 1


async def test_a_whole_answer_is_repeated(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    routers = [await cluster.router(1) for _ in range(2)]
    answers = [await ask(router, idempotency_key="k") for router in (*routers, routers[0])]
    assert [status for status, _, _ in answers] == [200] * 3
    assert json.loads(answers[0][1])["choices"][0]["text"] == words(8)
    assert answers[0] == answers[1] == answers[2]
    assert len(replica.seen.requests) == 1


async def test_one_key_goes_with_one_request_and_one_client(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    await ask(router, idempotency_key="k")
    status, body, _ = await ask(router, {**WHOLE, "prompt": "other"}, idempotency_key="k")
    assert status == 422
    assert "Idempotency-Key" in json.loads(body)["error"]["message"]
    assert len(replica.seen.requests) == 1
    other = {**WHOLE, "prompt": "other"}
    for headers in ({"authorization": "Bearer me"}, {"x_api_key": "you"}):
        assert (await ask(router, other, idempotency_key="k", **headers))[0] == 200
    assert len(replica.seen.requests) == 3


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_answer_that_failed_is_not_repeated(
    cluster: RouterCluster, is_stream: bool
) -> None:
    replica = await cluster.replica("a")
    routers = [await cluster.router(1) for _ in range(2)]
    body = BODY if is_stream else WHOLE
    replica.behaviour.status = 503
    assert (await ask(routers[0], body, idempotency_key="k"))[0] == 503
    replica.behaviour.status = 429
    assert (await ask(routers[1], body, idempotency_key="k"))[0] == 429
    replica.behaviour.status = None
    assert (await ask(routers[0], body, idempotency_key="k"))[0] == 200
    assert (await ask(routers[1], body, idempotency_key="k"))[0] == 200
    assert len(replica.seen.requests) == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"last_event_id": "3"}, 400),
        ({"last_event_id": "x", "idempotency_key": "k"}, 400),
        ({"last_event_id": "-1", "idempotency_key": "k"}, 400),
        ({"idempotency_key": "k" * 256}, 400),
        ({"idempotency_key": ""}, 400),
        ({"last_event_id": "3", "idempotency_key": "unknown"}, 410),
        ({"last_event_id": "99", "idempotency_key": "known"}, 410),
    ],
)
async def test_what_cannot_be_resumed_is_refused(
    cluster: RouterCluster, headers: dict[str, str], status: int
) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    await ask(router, BODY, idempotency_key="known")
    told, body, _ = await ask(router, BODY, **headers)
    assert told == status
    assert json.loads(body)["error"]["code"] == status
    assert len(replica.seen.requests) == 1


async def test_a_stream_that_nobody_comes_back_to_ends_and_can_still_be_resumed(
    cluster: RouterCluster,
) -> None:
    replica = await paced(cluster, num_chunks=400)
    routers = [await cluster.router(1, resume_grace_s=0.2) for _ in range(2)]
    reader = EventReader(BODY, "k")
    await reader.read(routers[0].client, until=3)
    await until(lambda: replica.seen.num_abandoned == 1)
    replica.behaviour.chunk_s = 0.0
    await reader.read(routers[1].client)
    assert reader.text == words(400)
    paths = [request.path for request in replica.seen.requests]
    assert paths == ["/v1/completions", CONTINUE + "/v1/completions"]
    assert await num_answers(routers[1], "taken_over") == 1


async def test_a_client_of_another_router_keeps_a_stream_alive(cluster: RouterCluster) -> None:
    replica = await paced(cluster, num_chunks=150)  # three times the grace
    routers = [await cluster.router(1, resume_grace_s=1.0) for _ in range(2)]
    reader = EventReader(BODY, "k")
    await reader.read(routers[0].client, until=3)
    await reader.read(routers[1].client)
    assert reader.text == words(150)
    assert len(replica.seen.requests) == 1


async def test_without_a_key_a_client_that_leaves_ends_its_request(cluster: RouterCluster) -> None:
    replica = await paced(cluster, num_chunks=1000)
    router = await cluster.router(1)
    async with router.client.post("/v1/completions", json=BODY) as response:
        await response.content.readany()
        response.close()
    await until(lambda: replica.seen.num_abandoned == 1)


async def test_a_replica_dies_while_nobody_reads(cluster: RouterCluster) -> None:
    bad, good = await paced(cluster, "bad"), await paced(cluster, "good")
    bad.behaviour.drop_after_chunks = 9
    routers = [await cluster.router(2, policy="round-robin") for _ in range(2)]
    reader = EventReader(BODY, "k")
    await reader.read(routers[0].client, until=2)
    await until(lambda: good.seen.requests)
    await reader.read(routers[1].client)
    assert reader.text == words(20)


async def test_a_router_that_stops_hands_its_streams_over_at_once(cluster: RouterCluster) -> None:
    replica = await paced(cluster, num_chunks=500)
    first, second = [await cluster.router(1) for _ in range(2)]
    reader = EventReader(BODY, "k")
    await reader.read(first.client, until=3)
    await first.state.resumption.close()
    async with redis.asyncio.Redis.from_url(cluster.redis.url) as client:
        [journal] = [key async for key in client.scan_iter("*:journal:*", _type="hash")]
        assert await client.hmget(journal, "owner", "until", "state") == [b"", b"0", b""]
    replica.behaviour.chunk_s = 0.0
    await reader.read(second.client)
    assert reader.text == words(500)


async def test_without_redis_answers_come_all_the_same(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    cluster.redis.stop()
    for body in (BODY, WHOLE):
        status, _, resumable = await ask(router, body, idempotency_key="k")
        assert (status, resumable) == (200, "0")
    assert (await ask(router, BODY, idempotency_key="k", last_event_id="3"))[0] == 503
    assert await num_answers(router, "not_kept") == 2


async def test_redis_dies_in_the_middle_of_a_stream(cluster: RouterCluster) -> None:
    await paced(cluster, num_chunks=60)
    router = await cluster.router(1)
    reader = EventReader(BODY, "k")
    reading = asyncio.create_task(reader.read(router.client))
    await until(lambda: len(reader.events) > 5)
    cluster.redis.stop()
    await asyncio.wait_for(reading, 60)
    assert reader.text == words(60)
    assert await num_answers(router, "not_kept") == 1


async def test_a_stream_that_outgrows_the_journal_goes_on_for_its_client_only(
    cluster: RouterCluster,
) -> None:
    replica = await paced(cluster, num_chunks=60)
    router = await cluster.router(1, resume_stream_bytes=4000)
    reader = EventReader(BODY, "k")
    await reader.read(router.client)
    assert reader.text == words(60)
    assert (await ask(router, BODY, idempotency_key="k"))[0] == 410
    assert len(replica.seen.requests) == 1


async def test_where_no_replica_can_go_on_the_stream_breaks_and_can_be_resumed_later(
    cluster: RouterCluster,
) -> None:
    replica = await paced(cluster)
    replica.behaviour.drop_after_chunks = 4
    router = await cluster.router(1, continue_patience_s=0.1)
    status, body, _ = await ask(router, BODY, idempotency_key="k")
    events = body.decode().strip().split("\n\n")
    assert (status, len(events)) == (200, 6)
    assert events[3].startswith("id: 4\n")
    assert events[4].startswith('data: {"error":')
    replica.behaviour.drop_after_chunks = None
    reader = EventReader(BODY, "k", events=[event.partition("\n")[2] for event in events[:4]])
    await reader.read((await cluster.router(1)).client)
    assert reader.text == words(20)


async def test_a_client_that_stands_still_stops_neither_the_stream_nor_others(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.num_chunks = 20_000
    routers = [
        await cluster.router(1, resume_stream_bytes=16 * 2**20, resume_total_bytes=32 * 2**20)
        for _ in range(2)
    ]
    body = {**BODY, "prompt": "a long answer"}
    headers = {"idempotency-key": "k"}
    async with (
        aiohttp.ClientSession(read_bufsize=1024) as stalled,
        stalled.post(routers[0].url + "/v1/completions", json=body, headers=headers) as answer,
    ):
        await answer.content.readany()
        reader = EventReader(body, "k")
        await reader.read(routers[1].client)
        assert reader.text == words(20_000)
        rest = await answer.read()
        assert rest.endswith(b"id: 20001\ndata: [DONE]\n\n")


async def test_without_redis_one_router_keeps_its_answers_itself(cluster: RouterCluster) -> None:
    from tests.fakes.router_cluster import running_router

    replica = await paced(cluster)
    async with running_router(replica_urls=(replica.record.url,)) as router:
        await until(lambda: len(router.deployment.replicas) == 1)
        reader = EventReader(BODY, "k")
        for number in range(4):
            await reader.read(router.client, until=4 * number + 3)
        await reader.read(router.client)
    assert reader.text == words(20)
    assert len(replica.seen.requests) == 1
