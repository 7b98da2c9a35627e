"""Requests through a router to fake replicas: what arrives, and what comes back."""

import json

import aiohttp
import pytest
from tests.fakes.fake_replica import words
from tests.fakes.router_cluster import RouterCluster, until

pytestmark = pytest.mark.integration


async def test_an_answer_comes_back_as_the_replica_gave_it(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    raw = b'{"model": "fake",   "prompt": "h\\u00e9llo world", "max_tokens": 8}'

    async with router.client.post("/v1/completions", data=raw) as response:
        body = await response.json()

    assert response.status == 200
    assert body["choices"][0]["text"] == words(8)
    assert response.headers["x-octavo-route"].startswith(
        "replica=a;policy=expected-ttft;cached=0;prompt="
    )
    assert response.headers["x-octavo-route"].endswith(";attempts=1")
    assert replica.seen.requests[0].body == raw  # the client's own bytes
    assert (
        replica.seen.requests[0].headers["x-request-id"] == response.headers["x-request-id"] != ""
    )


async def test_a_stream_is_relayed_byte_by_byte(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.01
    replica.behaviour.is_forgetful = True
    router = await cluster.router(1)
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    async with router.client.post("/v1/chat/completions", json=body) as response:
        chunks = [chunk async for chunk in response.content.iter_any()]
    async with router.client.post(
        replica.record.url + "/v1/chat/completions", json=body
    ) as response:
        direct = await response.read()

    assert b"".join(chunks) == direct
    assert len(chunks) >= 6  # not collected into one


@pytest.mark.parametrize("repeats", [8, 600])  # 600: tokenized in a thread
async def test_predicted_cached_tokens_equal_what_the_replica_reports(
    cluster: RouterCluster, repeats: int
) -> None:
    await cluster.replica("a")
    await cluster.replica("b")
    router = await cluster.router(2)
    prompt = "the quick brown fox jumps over the lazy dog " * repeats
    await router.completion(prompt)
    for tail in ("once more", "twice", "and a third time, rather longer than the others"):
        _, body, route = await router.completion(prompt + tail)
        fields = dict(field.split("=") for field in route.split(";"))
        usage = body["usage"]
        assert int(fields["prompt"]) == usage["prompt_tokens"]
        assert int(fields["cached"]) == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert await router.metric("octavo_router_cached_tokens_error_total") == 0


async def test_a_salt_keeps_tenants_apart(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    prompt = "the quick brown fox jumps over the lazy dog " * 8
    await router.completion(prompt, cache_salt="one")
    assert "cached=0" in (await router.completion(prompt, cache_salt="two"))[2]
    assert "cached=0" not in (await router.completion(prompt, cache_salt="one"))[2]


async def test_models_are_the_union_and_a_name_finds_its_replica(cluster: RouterCluster) -> None:
    await cluster.replica("a", model="x", served_names=["x", "shared"])
    await cluster.replica("b", model="y", served_names=["y", "shared"])
    router = await cluster.router(2)
    async with router.client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["shared", "x", "y"]
    for name, replica_id in (("x", "a"), ("y", "b")):
        _, _, route = await router.completion("hi", model=name)
        assert f"replica={replica_id};" in route


async def test_tokenize_is_answered_by_a_replica(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    async with router.client.post("/tokenize", json={"prompt": "the dog"}) as response:
        assert (await response.json())["count"] > 0
        assert "replica=a;" in response.headers["x-octavo-route"]


async def test_a_decision_can_be_explained_before_and_after(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    replica = await cluster.replica("b")
    router = await cluster.router(2)
    body = {"prompt": "hello", "model": "fake"}
    async with router.client.post("/debug/route", json=body) as response:
        dry = await response.json()
    assert {each["replica"] for each in dry["candidates"]} == {"a", "b"}
    assert replica.seen.requests == []

    headers = {"x-request-id": "mine-1"}
    async with router.client.post("/v1/completions", json=body, headers=headers) as response:
        assert response.headers["x-request-id"] == "mine-1"
    async with router.client.get("/debug/route/mine-1") as response:
        told = await response.json()
    assert told["replica"] in ("a", "b")
    assert told["prompt_tokens"] == dry["prompt_tokens"]
    async with router.client.get("/debug/route/unknown") as response:
        assert response.status == 404
        assert json.loads(await response.read())["error"]["type"] == "not_found_error"


async def test_a_client_that_leaves_ends_the_work_at_the_replica(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.05
    replica.behaviour.num_chunks = 1000
    router = await cluster.router(1)
    body = {"prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body) as response:
        await response.content.readany()
        response.close()
    await until(lambda: replica.seen.num_abandoned == 1)

    replica.behaviour.is_stalled = True  # before the first byte, too
    with pytest.raises(TimeoutError):
        await router.client.post(
            "/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=0.2)
        )
    await until(lambda: replica.seen.num_abandoned == 2)
    assert router.state.num_open == replica.seen.num_open == 0


async def test_a_router_that_starts_later_knows_the_caches(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    await cluster.replica("b")
    first = await cluster.router(2)
    prompt = "the quick brown fox jumps over the lazy dog " * 8
    _, _, before = await first.completion(prompt)
    second = await cluster.router(2)
    await until(
        lambda: second.deployment.index.num_entries == first.deployment.index.num_entries > 0
    )
    answers = [await router.completion(prompt) for router in (first, second)]
    for _, body, route in answers:
        assert route.split(";")[0] == before.split(";")[0]
        reported = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert f"cached={reported};" in route
        assert reported > 0
