"""Replicas, records and requests that are odd but must cost nothing."""

import asyncio
import json
import time
from collections.abc import Callable

import msgspec
import pytest
import redis.asyncio
from aiohttp import web
from tests.fakes.fake_replica import FakeReplica
from tests.fakes.router_cluster import KEYS, RouterCluster, RunningRouter, until

from octavo_protocol.tokenizer import TokenizerBundle

pytestmark = pytest.mark.integration

PROMPT = "the quick brown fox jumps over the lazy dog " * 8


class BrokenBundle(FakeReplica):
    async def _bundle(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(TokenizerBundle("{}"))
        return web.Response(body=body, content_type="application/json")


class StalledBundle(FakeReplica):
    async def _bundle(self, request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError


class Scripted(FakeReplica):
    reply: Callable[[], web.Response]

    async def _answer(self, request: web.Request, *data: object) -> web.StreamResponse:
        return self.reply()


async def router_over(cluster: RouterCluster, kind: type[FakeReplica]) -> RunningRouter:
    replica = kind("a", redis_url=cluster.redis.url, keys=KEYS)
    await cluster.stack.enter_async_context(replica)
    return await cluster.router(1)


async def scripted(cluster: RouterCluster, reply: Callable[[], web.Response]) -> RunningRouter:
    replica = Scripted("a", redis_url=cluster.redis.url, keys=KEYS)
    replica.reply = reply
    await cluster.stack.enter_async_context(replica)
    return await cluster.router(1)


async def test_a_tokenizer_that_cannot_be_read_costs_the_prediction_only(
    cluster: RouterCluster,
) -> None:
    router = await router_over(cluster, BrokenBundle)
    status, _, route = await router.completion(PROMPT)
    assert status == 200
    assert "prompt=0" in route


async def test_a_tokenizer_that_does_not_come_delays_requests_by_a_second_at_most(
    cluster: RouterCluster,
) -> None:
    router = await router_over(cluster, StalledBundle)
    started = time.monotonic()
    answers = await asyncio.gather(*(router.completion(PROMPT) for _ in range(4)))
    assert [status for status, _, _ in answers] == [200] * 4
    assert time.monotonic() - started < 3


async def test_a_broken_stream_keeps_its_replica_out_for_a_moment(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a", prefill_tokens_per_s=1e6, decode_tokens_per_s=1e6)
    await cluster.replica("b", prefill_tokens_per_s=1.0)
    replica.behaviour.drop_after_chunks = 3
    router = await cluster.router(2)
    async with router.client.post(
        "/v1/completions", json={"prompt": "hi", "stream": True}
    ) as response:
        await response.read()
        assert "replica=a;" in response.headers["x-octavo-route"]
    usable = router.deployment.replicas.usable("fake")
    assert [record.replica_id for record in usable] == ["b"]


async def test_when_to_come_back_is_relayed(cluster: RouterCluster) -> None:
    router = await scripted(
        cluster, lambda: web.json_response({}, status=429, headers={"retry-after": "7"})
    )
    async with router.client.post("/v1/completions", json={"prompt": "x"}) as response:
        assert (response.status, response.headers["retry-after"]) == (429, "7")


async def test_a_compressed_answer_can_be_read(cluster: RouterCluster) -> None:
    def reply() -> web.Response:
        response = web.json_response({"choices": [], "padding": "x" * 5000})
        response.enable_compression()
        return response

    router = await scripted(cluster, reply)
    async with router.client.post("/v1/completions", json={"prompt": "x"}) as response:
        assert json.loads(await response.read())["choices"] == []


async def test_an_id_that_is_no_text_does_not_end_discovery(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    async with redis.asyncio.Redis.from_url(cluster.redis.url) as client:
        await client.zadd(KEYS.replicas, {b"\xff\xfe": time.time()})
    await cluster.replica("b")
    await until(lambda: len(router.deployment.replicas) == 2)


async def test_an_empty_model_name_is_predicted_like_none(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    _, body, route = await router.completion(PROMPT, model="")
    assert f"prompt={body['usage']['prompt_tokens']};" in route


async def test_a_wrong_method_or_slash_gets_the_envelope(cluster: RouterCluster) -> None:
    router = await cluster.router(0)
    async with router.client.get("/v1/completions") as response:
        assert (response.status, response.headers["allow"]) == (405, "POST")
        assert (await response.json())["error"]["code"] == 405
    async with router.client.get("/v1/models/", allow_redirects=False) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == 404
