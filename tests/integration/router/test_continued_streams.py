"""A replica breaks a stream off; another one goes on with it, and the client sees it whole."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.fakes.fake_replica import FakeReplica, words
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until

from octavo_protocol.continuation import CONTINUE, MARK

pytestmark = pytest.mark.integration


async def stream(
    router: RunningRouter,
    path: str = "/v1/completions",
    *,
    begun: Callable[[], None] = lambda: None,
    **fields: Any,
) -> str:
    """The answer's body. begun: called with the first byte."""
    prompt = {"prompt": "hello"} if path == "/v1/completions" else {"messages": HI}
    body = {"model": "fake", **prompt, "stream": True, **fields}
    async with router.client.post(path, json=body) as response:
        assert response.status == 200
        first = await response.content.readany()
        begun()
        return (first + await response.read()).decode()


HI = [{"role": "user", "content": "hello"}]


def text_of(answer: str) -> str:
    events = [each.removeprefix("data: ") for each in answer.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    choices = [choice for each in events[:-1] for choice in json.loads(each)["choices"]]
    return "".join(c["delta"]["content"] if "delta" in c else c["text"] for c in choices)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("how", ["between events", "within an event", "in good order"])
@pytest.mark.parametrize("num_chunks", [1, 3, 8])
async def test_a_stream_goes_on_elsewhere(
    cluster: RouterCluster, num_chunks: int, how: str, path: str
) -> None:
    bad, good = await cluster.replica("bad"), await cluster.replica("good")
    bad.behaviour.drop_after_chunks = num_chunks
    bad.behaviour.is_torn = how == "within an event"
    bad.behaviour.ends_early = how == "in good order"
    router = await cluster.router(2, policy="round-robin")
    answer = await stream(router, path, stream_options={"include_usage": True})
    assert text_of(answer) == words(8)
    assert answer.count('"usage"') == 1
    assert MARK.decode() not in answer
    assert good.seen.requests[0].path == CONTINUE + path
    assert "x-octavo-trace" in good.seen.requests[0].headers
    assert await router.metric("octavo_router_broken_streams_total") == 1
    assert await router.metric("octavo_router_continued_streams_total") == 1


async def test_a_stream_goes_on_through_as_many_replicas_as_make_progress(
    cluster: RouterCluster,
) -> None:
    replicas = [await cluster.replica(f"r{number}") for number in range(3)]
    for replica in replicas:
        replica.behaviour.drop_after_chunks = 2
        replica.behaviour.num_chunks = 20
    router = await cluster.router(3, policy="round-robin", max_attempts=2)
    assert text_of(await stream(router)) == words(20)
    assert await router.metric("octavo_router_continued_streams_total") >= 9


async def test_replicas_that_do_not_go_on_are_passed_over(cluster: RouterCluster) -> None:
    bad = await cluster.replica("a-bad")
    refusing, dying = await cluster.replica("b-refusing"), await cluster.replica("c-dying")
    await cluster.replica("d-good")
    router = await cluster.router(4, policy="round-robin")
    bad.behaviour.drop_after_chunks = 3
    refusing.behaviour.status = 400
    dying.behaviour.drop_after_chunks = 0
    assert text_of(await stream(router)) == words(8)


async def test_where_every_replica_fails_the_stream_ends_with_an_error_event(
    cluster: RouterCluster,
) -> None:
    replicas = [await cluster.replica(name) for name in "ab"]
    replicas[0].behaviour.drop_after_chunks = 3
    replicas[1].behaviour.status = 503
    router = await cluster.router(2, policy="round-robin", continue_patience_s=0.2)
    events = (await stream(router)).strip().split("\n\n")
    assert [json.loads(each[6:])["choices"][0]["text"] for each in events[:3]] == [
        "w0 ",
        "w1 ",
        "w2 ",
    ]
    assert events[3].startswith('data: {"error":{"message":')
    assert events[4:] == ["data: [DONE]"]
    assert await router.metric("octavo_router_continued_streams_total") == 0


async def test_a_stream_waits_for_a_replica_to_come(cluster: RouterCluster) -> None:
    only = await cluster.replica("only")
    only.behaviour.chunk_s = 0.05
    router = await cluster.router(1)
    has_begun = asyncio.Event()
    running = asyncio.create_task(stream(router, begun=has_begun.set))
    await has_begun.wait()
    await only.kill()
    await cluster.replica("new")
    assert text_of(await running) == words(8)


async def test_a_killed_replica_costs_none_of_many_streams(cluster: RouterCluster) -> None:
    """More than the retry budget has."""
    replicas = [await cluster.replica(name) for name in "ab"]
    gate = asyncio.Event()
    for replica in replicas:
        replica.behaviour.gate = gate
        replica.behaviour.num_chunks = 20
    router = await cluster.router(2, policy="round-robin")
    begun: list[None] = []
    running = [
        asyncio.create_task(stream(router, begun=lambda: begun.append(None))) for _ in range(300)
    ]
    await until(lambda: len(begun) == 300)
    assert replicas[0].seen.num_open == 150
    await replicas[0].kill()
    gate.set()
    assert [text_of(answer) for answer in await asyncio.gather(*running)] == [words(20)] * 300
    continued = await router.metric("octavo_router_continued_streams_total")
    assert continued == went_on(replicas[1]) == 150


def went_on(replica: FakeReplica) -> int:
    return sum(each.path.startswith(CONTINUE) for each in replica.seen.requests)


async def test_a_client_cannot_ask_a_replica_for_marks_through_the_router(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.is_traced = False
    router = await cluster.router(1)
    headers = {"x-octavo-trace": "mine"}
    body = {"prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body, headers=headers) as response:
        assert MARK not in await response.read()
        assert "x-octavo-trace" not in response.headers
    assert replica.seen.requests[0].headers["x-octavo-trace"] == "1"
    async with router.client.post(CONTINUE + "/v1/completions", json={}) as response:
        assert response.status == 404
