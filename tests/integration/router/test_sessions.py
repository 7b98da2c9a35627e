"""A client's session reaches the policy that keeps sessions together."""

from typing import Any

import pytest
from tests.fakes.router_cluster import RouterCluster

pytestmark = pytest.mark.integration


async def test_a_session_stays_with_one_replica_whether_header_or_body_names_it(
    cluster: RouterCluster,
) -> None:
    for name in "abc":
        await cluster.replica(name)
    router = await cluster.router(3, policy="session-affinity")

    async def replica_of(prompt: str, headers: dict[str, str], **fields: Any) -> str:
        body = {"model": "fake", "prompt": prompt, "max_tokens": 1, **fields}
        async with router.client.post("/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            route = response.headers["x-octavo-route"]
        assert ";policy=session-affinity;" in route
        return route.partition(";")[0]

    turns = {await replica_of(f"turn {turn}", {"x-session-id": "s-1"}) for turn in range(6)}
    assert turns == {await replica_of("by the body", {}, session_id="s-1")}
    assert turns == {await replica_of("by the user", {}, user="s-1")}
    others = {await replica_of("hello", {"x-session-id": f"s-{number}"}) for number in range(24)}
    assert len(others) == 3
