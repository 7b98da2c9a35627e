"""One router serves every deployment in a cluster's registry, as they come and go."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import redis.asyncio
from tests.fakes.fake_replica import FakeReplica, words
from tests.fakes.router_cluster import RouterCluster, RunningRouter, running_router, until

from octavo_protocol.keys import DEPLOYMENTS, Keys, deployment_field
from octavo_protocol.records import DeploymentRecord, encode

pytestmark = pytest.mark.integration


@pytest.fixture
async def registry(cluster: RouterCluster) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.Redis.from_url(cluster.redis.url) as client:
        yield client


async def register(client: "redis.asyncio.Redis", *names: str) -> None:
    """Deployments `n/{name}`, each of which serves the model of its name."""
    records = {
        deployment_field("n", name): encode(DeploymentRecord("n", name, [name], "round-robin", 1.0))
        for name in names
    }
    await client.hset(DEPLOYMENTS, mapping=cast(dict[Any, Any], records))


async def replica_of(cluster: RouterCluster, name: str, replica_id: str) -> FakeReplica:
    replica = FakeReplica(
        replica_id,
        redis_url=cluster.redis.url,
        keys=Keys("n", name),
        served_names=[name],
        cache_model=f"{name}@1",
    )
    return await cluster.stack.enter_async_context(replica)


async def router_of_all(cluster: RouterCluster) -> RunningRouter:
    router = await cluster.stack.enter_async_context(
        running_router(redis_url=cluster.redis.url, all_deployments=True)
    )
    await until(lambda: router.state.stage == "ready")
    return router


async def models(router: RunningRouter) -> list[str]:
    async with router.client.get("/v1/models") as response:
        return [model["id"] for model in (await response.json())["data"]]


async def test_each_model_is_answered_by_its_own_replicas(
    cluster: RouterCluster, registry: "redis.asyncio.Redis"
) -> None:
    await register(registry, "a", "b")
    replicas = {name: await replica_of(cluster, name, f"{name}-0") for name in ("a", "b")}
    router = await router_of_all(cluster)
    await until(lambda: sum(len(each.replicas) for each in router.state.deployments) == 2)

    for name, replica in replicas.items():
        for _ in range(2):
            status, body, route = await router.completion("the quick brown fox " * 8, model=name)
            assert (status, body["choices"][0]["text"]) == (200, words(8))
            assert route.startswith(f"replica={name}-0;policy=round-robin;")
        assert len(replica.seen.requests) == 2
    assert await models(router) == ["a", "b"]
    await until(lambda: router.state.index_budget.num_entries > 0)
    assert await router.metric('octavo_router_deployment_replicas{deployment="n/a"}') == 1


async def test_a_router_without_models_is_ready_and_says_what_does_not_exist(
    cluster: RouterCluster,
) -> None:
    router = await router_of_all(cluster)
    async with router.client.get("/ready") as response:
        assert response.status == 200
    status, body, _ = await router.completion("hello", model="a")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert await models(router) == []


async def test_a_router_that_never_reached_redis_is_not_ready() -> None:
    async with running_router(redis_url="unix:///nowhere/redis.sock", all_deployments=True) as it:
        async with it.client.get("/ready") as response:
            assert (response.status, (await response.json())["stage"]) == (503, "waiting for Redis")
        assert (await it.completion("hello", model="a"))[0] == 503


async def test_a_model_without_a_ready_replica_is_a_503_that_says_when_to_come_back(
    cluster: RouterCluster, registry: "redis.asyncio.Redis"
) -> None:
    await register(registry, "a")
    router = await router_of_all(cluster)
    await until(lambda: len(router.state.deployments) == 1)
    async with router.client.post("/v1/completions", json={"model": "a", "prompt": "x"}) as it:
        assert (it.status, it.headers["retry-after"]) == (503, "1")
        assert "no replica of the model 'a' is ready" in (await it.json())["error"]["message"]
    assert await models(router) == ["a"]

    await replica_of(cluster, "a", "a-0")
    await until(lambda: router.deployment.replicas.usable("a"))
    assert (await router.completion("hello", model="a"))[0] == 200


async def test_a_deployment_leaves_and_its_running_stream_ends_whole(
    cluster: RouterCluster, registry: "redis.asyncio.Redis"
) -> None:
    await register(registry, "a", "b")
    replica = await replica_of(cluster, "a", "a-0")
    replica.behaviour.chunk_s = 0.2
    replica.behaviour.num_chunks = 20
    router = await router_of_all(cluster)
    await until(lambda: any(len(each.replicas) for each in router.state.deployments))
    body = {"model": "a", "prompt": "hello", "stream": True}
    async with router.client.post("/v1/completions", json=body) as stream:
        await stream.content.readany()
        await registry.hdel(DEPLOYMENTS, deployment_field("n", "a"))
        await until(lambda: router.state.deployments.get("n/a") is None)
        assert (await router.completion("hello", model="a"))[0] == 404
        replica.behaviour.chunk_s = 0.0
        rest = await stream.read()
    assert b"w19 " in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert router.state.index_budget.num_entries == 0


async def test_redis_emptied_loses_no_model_whose_replicas_live(
    cluster: RouterCluster, registry: "redis.asyncio.Redis"
) -> None:
    await register(registry, "a", "idle")
    await replica_of(cluster, "a", "a-0")
    router = await router_of_all(cluster)
    await until(lambda: any(len(each.replicas) for each in router.state.deployments))

    await registry.flushall()

    await until(lambda: router.state.deployments.get("n/idle") is None, seconds=15)
    assert (await router.completion("hello", model="a"))[0] == 200
    await register(registry, "a", "idle")
    await until(lambda: router.state.deployments.get("n/idle") is not None)
    assert await models(router) == ["a", "idle"]


async def test_a_record_that_cannot_be_read_costs_only_its_own_deployment(
    cluster: RouterCluster, registry: "redis.asyncio.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    await registry.hset(DEPLOYMENTS, "n/broken", b"\xc1")
    await register(registry, "a")
    router = await router_of_all(cluster)
    await until(lambda: len(router.state.deployments) == 1)
    assert await models(router) == ["a"]
    assert "the record of deployment b'n/broken' cannot be read" in caplog.text


async def test_of_many_idle_deployments_every_one_is_read_and_one_in_use_at_every_poll(
    cluster: RouterCluster, registry: "redis.asyncio.Redis"
) -> None:
    await register(registry, *(f"m{number}" for number in range(450)))
    replica = await replica_of(cluster, "m449", "r-0")
    router = await router_of_all(cluster)
    await until(lambda: len(router.state.deployments) == 450)
    used = router.state.deployments.find("m449")
    await until(lambda: len(used.replicas) == 1)
    assert (await router.completion("hello", model="m449"))[0] == 200

    replica.record.waiting_tokens = 77
    await until(lambda: used.loads.num_queued_tokens(replica.record.incarnation) == 77, seconds=1.5)
    await until(lambda: min(each.read_at for each in router.state.deployments) > 0)
