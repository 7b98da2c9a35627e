"""Who may use the router, and what it tells replicas."""

import pytest
from tests.fakes.router_cluster import RouterCluster

pytestmark = pytest.mark.integration

_BODY = {"model": "fake", "prompt": "hi"}


async def test_router_with_a_key_lets_nobody_else_in(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1, api_key=("sesame", "other"))
    answers = {}
    for name, headers in {
        "none": {},
        "wrong": {"authorization": "Bearer open"},
        "right": {"authorization": "Bearer sesame"},
        "anthropic": {"x-api-key": "other"},
    }.items():
        async with router.client.post("/v1/completions", json=_BODY, headers=headers) as response:
            answers[name] = response.status
            if response.status == 401:
                assert (await response.json())["error"]["type"] == "authentication_error"

    assert answers == {"none": 401, "wrong": 401, "right": 200, "anthropic": 200}
    assert len(replica.seen.requests) == 2
    async with router.client.get("/ready") as response:
        assert response.status == 200


async def test_replica_gets_the_clients_key(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    for headers in ({"authorization": "Bearer k"}, {"x-api-key": "k"}):
        async with router.client.post("/v1/completions", json=_BODY, headers=headers) as response:
            assert response.status == 200

    assert [seen.headers["authorization"] for seen in replica.seen.requests] == ["Bearer k"] * 2


async def test_replica_gets_the_priority_header_and_no_other(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1)
    headers = {"x-vllm-priority": "7", "x-secret": "s", "cookie": "c=1"}
    async with router.client.post("/v1/completions", json=_BODY, headers=headers) as response:
        assert response.status == 200

    [seen] = replica.seen.requests
    assert seen.headers["x-vllm-priority"] == "7"
    assert not {"x-secret", "cookie", "authorization"} & seen.headers.keys()


async def test_replica_gets_the_routers_own_key_where_it_has_one(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1, api_key=("client",), replica_api_key="inner")
    headers = {"authorization": "Bearer client"}
    async with router.client.post("/v1/completions", json=_BODY, headers=headers) as response:
        assert response.status == 200

    assert replica.seen.requests[0].headers["authorization"] == "Bearer inner"
