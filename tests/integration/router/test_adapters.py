"""Adapters over replicas: found, loaded where they are missed, spread; nothing is lost."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from tests.fakes.fake_replica import FakeReplica, words
from tests.fakes.router_cluster import RouterCluster, RunningRouter, running_router, until
from tests.integration.router.test_tenants import tenants

from octavo_protocol.keys import DEPLOYMENTS, Keys, deployment_field
from octavo_protocol.overrides import MODEL_HEADER
from octavo_protocol.records import AdapterSource, DeploymentRecord, encode

pytestmark = pytest.mark.integration

KEYS = Keys("n", "base")
PROMPT = "the quick brown fox jumps over the lazy dog " * 8
SQL = AdapterSource("sql", "hf://org/sql", "abc", on_demand=True)
LAW = AdapterSource("law", "hf://org/law", on_demand=True)


@dataclass
class World:
    """The deployment `n/base` of the model "base", and a router of all deployments."""

    cluster: RouterCluster
    client: "redis.asyncio.Redis"
    policy: str = "expected-ttft"

    async def register(self, *adapters: AdapterSource) -> None:
        record = DeploymentRecord("n", "base", ["base"], self.policy, 1.0, list(adapters))
        fields = {deployment_field("n", "base"): encode(record)}
        await self.client.hset(DEPLOYMENTS, mapping=cast(dict[Any, Any], fields))

    async def replica(self, replica_id: str, **fields: Any) -> FakeReplica:
        fields = {"max_adapters": 4, "served_names": ["base"], "max_num_seqs": 8, **fields}
        replica = FakeReplica(replica_id, redis_url=self.cluster.redis.url, keys=KEYS, **fields)
        return await self.cluster.stack.enter_async_context(replica)

    async def router(self, num_replicas: int, **options: Any) -> RunningRouter:
        opened = running_router(redis_url=self.cluster.redis.url, all_deployments=True, **options)
        router = await self.cluster.stack.enter_async_context(opened)
        await until(lambda: router.state.deployments.get("n/base"))
        await until(lambda: len(router.deployment.replicas) == num_replicas)
        return router


@pytest.fixture
async def world(cluster: RouterCluster) -> AsyncIterator[World]:
    async with redis.asyncio.Redis.from_url(cluster.redis.url) as client:
        yield World(cluster, client)


def holding(*sources: AdapterSource) -> dict[str, Any]:
    """Fields of a replica that has these adapters."""
    return {"adapter_sources": {each.name: each.origin for each in sources}}


async def ask(router: RunningRouter, model: str, prompt: str = "hello") -> tuple[int, str]:
    """(status, replica) of one completion."""
    status, body, route = await router.completion(prompt, model=model)
    if status == 200:
        assert body["choices"][0]["text"] == words(8)
    return status, route.partition(";")[0].removeprefix("replica=")


async def test_an_adapter_s_requests_go_where_it_is_and_nothing_is_loaded(world: World) -> None:
    await world.register(SQL)
    await world.replica("a")
    await world.replica("b", **holding(SQL))
    router = await world.router(2)
    assert {await ask(router, "sql") for _ in range(5)} == {(200, "b")}
    async with router.client.get("/v1/models") as response:
        listed = (await response.json())["data"]
    assert [(each["id"], each["root"], each["parent"]) for each in listed] == [
        ("base", "fake", None),
        ("sql", "hf://org/sql@abc", "fake"),
    ]


@pytest.mark.parametrize("policy", ["expected-ttft", "round-robin", "prefix-hash", "least-load"])
async def test_an_adapter_that_nobody_has_is_loaded_once_for_all_that_wait_for_it(
    world: World, policy: str
) -> None:
    world.policy = policy
    await world.register(SQL)
    replica = await world.replica("a")
    await world.replica("takes-none", max_adapters=0)
    replica.behaviour.adapter_load_s = 0.2
    router = await world.router(2)
    answers = await asyncio.gather(*(ask(router, "sql") for _ in range(20)))
    assert set(answers) == {(200, "a")}
    assert replica.seen.loads == [
        {"lora_name": "sql", "lora_path": "hf://org/sql", "revision": "abc"}
    ]
    assert await router.metric('octavo_router_adapter_loads_total{outcome="loaded"}') == 1
    assert await router.metric("octavo_router_adapter_load_seconds_count") == 1


async def test_requests_of_the_base_model_do_not_wait_for_loads(world: World) -> None:
    await world.register(SQL)
    replica = await world.replica("a")
    replica.behaviour.adapter_load_s = 30
    router = await world.router(1)
    waiting = asyncio.create_task(ask(router, "sql"))
    await until(lambda: replica.seen.loads)
    assert await ask(router, "base") == (200, "a")
    waiting.cancel()


async def test_a_replica_that_cannot_load_it_is_passed_over(world: World) -> None:
    await world.register(SQL)
    bad = await world.replica("bad", adapter_load_s=0.001)
    good = await world.replica("good", adapter_load_s=1.0)
    bad.behaviour.adapter_errors["sql"] = 503, "all room is taken by pinned adapters"
    router = await world.router(2)
    assert {await ask(router, "sql") for _ in range(5)} == {(200, "good")}
    assert (len(bad.seen.loads), len(good.seen.loads)) == (1, 1)


async def test_a_replica_s_own_api_key_that_the_router_lacks_is_said(world: World) -> None:
    await world.register(SQL)
    replica = await world.replica("a")
    replica.behaviour.adapter_errors["sql"] = 401, "Incorrect API key provided"
    router = await world.router(1)
    status, body, _ = await router.completion("hello", model="sql")
    assert (status, body["error"]["code"]) == (503, "adapter_not_loaded")
    assert "does not have (--replica-api-key)" in body["error"]["message"]


async def test_a_broken_adapter_tells_its_clients_why_and_is_tried_once_per_replica(
    world: World,
) -> None:
    await world.register(SQL, LAW)
    replicas = [await world.replica(name) for name in "ab"]
    for replica in replicas:
        replica.behaviour.adapter_errors["sql"] = 400, "rank 64 is more than max_lora_rank 16"
    router = await world.router(2)
    for _ in range(5):
        status, body, _ = await router.completion("hello", model="sql")
        assert (status, body["error"]["code"]) == (503, "adapter_not_loaded")
        assert body["error"]["message"] == (
            "the adapter 'sql' cannot be loaded: rank 64 is more than max_lora_rank 16"
        )
    assert [len(replica.seen.loads) for replica in replicas] == [1, 1]
    assert (await ask(router, "law"))[0] == (await ask(router, "base"))[0] == 200

    await world.register(AdapterSource("sql", "hf://org/repaired", on_demand=True), LAW)
    for replica in replicas:
        replica.behaviour.adapter_errors.clear()
    await until(lambda: router.deployment.replicas.adapters.error("sql") is None)
    assert (await ask(router, "sql"))[0] == 200


async def test_a_request_tries_no_more_replicas_than_it_may(world: World) -> None:
    await world.register(SQL)
    replicas = [await world.replica(name) for name in "abc"]
    for replica in replicas:
        replica.behaviour.adapter_errors["sql"] = 400, "rank 64 is too much"
    router = await world.router(3, max_attempts=2)
    status, body, _ = await router.completion("hello", model="sql")
    assert (status, body["error"]["code"]) == (503, "adapter_not_loaded")
    assert sum(len(replica.seen.loads) for replica in replicas) == 2


async def test_a_load_that_takes_too_long_is_left_to_itself(world: World) -> None:
    await world.register(SQL)
    slow = await world.replica("slow", adapter_load_s=0.001)
    await world.replica("quick", adapter_load_s=1.0)
    slow.behaviour.adapter_load_s = 0.5
    router = await world.router(2, adapter_wait_s=0.1)
    assert await ask(router, "sql") == (200, "quick")
    await until(lambda: "sql" in slow.adapters)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_adapter_that_was_just_evicted_is_loaded_again_and_nobody_sees_it(
    world: World, is_stream: bool
) -> None:
    await world.register(SQL)
    replica = await world.replica("a", **holding(SQL))
    router = await world.router(1)
    replica.forget_adapter("sql", is_told=False)
    body = {"model": "sql", "prompt": "hello", "stream": is_stream}
    async with router.client.post("/v1/completions", json=body) as response:
        assert (response.status, b"w7" in await response.read()) == (200, True)
    assert len(replica.seen.loads) == 1


async def test_an_evicted_adapter_without_a_known_source_is_found_elsewhere_or_a_404(
    world: World,
) -> None:
    await world.register()
    a, b = [await world.replica(name, **holding(SQL)) for name in "ab"]
    router = await world.router(2)
    a.forget_adapter("sql", is_told=False)
    assert {await ask(router, "sql") for _ in range(4)} == {(200, "b")}
    b.forget_adapter("sql", is_told=False)
    status, body, _ = await router.completion("hello", model="sql")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_an_adapter_that_nobody_knows_is_a_404(world: World) -> None:
    await world.register(SQL)
    await world.replica("a")
    router = await world.router(1)
    status, body, _ = await router.completion("hello", model="other")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "there are 'base', 'sql'" in body["error"]["message"]


async def test_a_removed_adapter_becomes_a_404(world: World) -> None:
    await world.register(SQL)
    replica = await world.replica("a", **holding(SQL))
    router = await world.router(1)
    assert (await ask(router, "sql"))[0] == 200
    await world.register()

    async def is_unknown() -> bool:
        if "sql" in replica.adapters:  # also a load by a router that did not know yet
            replica.forget_adapter("sql")
        return (await ask(router, "sql"))[0] == 404

    await until(is_unknown)


async def test_a_stream_goes_on_at_a_replica_that_loads_the_adapter_first(world: World) -> None:
    await world.register(SQL)
    bad, good = await world.replica("bad", **holding(SQL)), await world.replica("good")
    bad.behaviour.drop_after_chunks = 3
    router = await world.router(2)
    body = {"model": "sql", "prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body) as response:
        text = (await response.read()).decode()
    assert [f"w{index} " in text for index in range(8)] == [True] * 8
    assert "error" not in text
    assert list(good.adapters) == ["sql"]


async def test_two_adapters_and_the_model_never_share_blocks_and_hits_are_predicted(
    world: World,
) -> None:
    await world.register(SQL, LAW)
    await world.replica("a", **holding(SQL, LAW))
    router = await world.router(1)
    for model in ("base", "sql", "law"):
        _, body, route = await router.completion(PROMPT, model=model)
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert (cached, "cached=0;" in route) == (0, True)
    for model in ("base", "sql", "law"):
        _, body, route = await router.completion(PROMPT, model=model)
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        assert f"cached={cached};" in route


async def test_a_copy_is_added_for_demand_before_any_request_misses_it(world: World) -> None:
    await world.register(SQL)
    a, b = await world.replica("a", **holding(SQL)), await world.replica("b")
    a.behaviour.first_token_s = b.behaviour.first_token_s = 60
    router = await world.router(2)
    asking = [asyncio.create_task(ask(router, "sql")) for _ in range(300)]
    await until(lambda: b.seen.loads)
    assert [each["lora_name"] for each in b.seen.loads] == ["sql"]
    assert a.seen.loads == []
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_clients_cannot_load_adapters_through_the_router(world: World) -> None:
    await world.register()
    replica = await world.replica("a")
    router = await world.router(1)
    body = {"lora_name": "mine", "lora_path": "hf://org/mine"}
    for verb in ("load", "unload"):
        async with router.client.post(f"/v1/{verb}_lora_adapter", json=body) as response:
            assert response.status == 404
    assert replica.seen.loads == []


async def test_an_alias_splits_requests_over_two_adapters_and_passes_over_a_broken_one(
    world: World, tmp_path: Path
) -> None:
    """The answers themselves name no adapter here: what the replica was asked for does."""
    await world.register(SQL, LAW)
    replica = await world.replica("a", **holding(SQL))
    targets = [{"model": "sql", "weight": 1}, {"model": "law", "weight": 1}]
    path = tenants(tmp_path, {"name": "acme", "models": ["best"]}, aliases={"best": targets})
    router = await world.router(1, tenants=path)
    headers = {"authorization": "Bearer acme-key"}

    async def answered(times: int) -> set[str]:
        replica.seen.requests.clear()
        for _ in range(times):
            body = {"model": "best", "prompt": "hello"}
            async with router.client.post("/v1/completions", json=body, headers=headers) as it:
                assert it.status == 200
        return {each.headers[MODEL_HEADER] for each in replica.seen.requests}

    assert await answered(20) == {"sql", "law"}

    replica.forget_adapter("law")
    replica.behaviour.adapter_errors["law"] = 400, "no such file"
    adapters = router.deployment.replicas.adapters
    adapters.note_refused(replica.record.incarnation, "law", "no such file")
    await until(lambda: not router.state.deployments.is_ready("law"))
    assert await answered(10) == {"sql"}


async def test_under_random_evictions_restarts_and_failures_no_request_is_lost(
    world: World,
) -> None:
    """Thirty adapters on three replicas that give them up, with and without saying so, one that
    dies and comes back empty, and one adapter that is broken.
    """
    draw = random.Random(8)
    sources = [AdapterSource(f"adapter-{i}", f"hf://org/{i}", on_demand=True) for i in range(30)]
    await world.register(*sources, SQL)

    async def new_replica(name: str) -> FakeReplica:
        replica = await world.replica(name)
        replica.behaviour.adapter_errors["sql"] = 400, "rank 64 is too much"
        return replica

    replicas = [await new_replica(name) for name in "abc"]
    router = await world.router(3)
    statuses: Counter[tuple[str, int]] = Counter()
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        own = random.Random(number)
        while not is_over.is_set():
            model = own.choice([*(each.name for each in sources), "base", "sql"])
            status, _ = await ask(router, model)
            statuses["sql" if model == "sql" else "other", status] += 1

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    for turn in range(100):
        replica = draw.choice(replicas)
        if replica.adapters:
            name = draw.choice(list(replica.adapters))
            replica.forget_adapter(name, is_told=draw.random() < 0.5)
        if turn == 50:
            await replicas[0].kill()
            replicas[0] = await new_replica("a")
        await asyncio.sleep(0.01)
    is_over.set()
    await asyncio.gather(*clients)

    assert set(statuses) == {("sql", 503), ("other", 200)}
    assert statuses["other", 200] > 100
    assert all(len(replica.seen.loads) > 5 for replica in replicas)
    tried = sum(load["lora_name"] == "sql" for each in replicas for load in each.seen.loads)
    assert tried <= 2 * len(replicas)
