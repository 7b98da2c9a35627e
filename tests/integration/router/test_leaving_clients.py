"""A client that leaves, and did not ask to come back, ends its request in the replica's engine."""

import asyncio
from pathlib import Path

import pytest
from tests.fakes.router_cluster import running_router, until
from tests.integration.replica.harness import Replica

pytestmark = pytest.mark.integration

STEP_S = 0.5


@pytest.mark.parametrize("is_resumable", [False, True])
async def test_the_engine_stops_within_a_step_unless_the_client_may_come_back(
    tmp_path: Path, is_resumable: bool
) -> None:
    replica = Replica(tmp_path, step_s=STEP_S)
    body = {"prompt": "the dog", "max_tokens": 200, "stream": True}
    headers = {"idempotency-key": "k"} if is_resumable else {}
    try:
        await asyncio.to_thread(replica.wait_ready)
        async with running_router(replica_urls=(replica.url,), resume_grace_s=60) as router:
            await until(lambda: len(router.deployment.replicas) == 1)
            answer = await router.client.post("/v1/completions", json=body, headers=headers)
            await answer.content.readany()
            before = await tokens(replica)
            answer.close()
            await asyncio.sleep(4 * STEP_S)
            after = await tokens(replica)
            running = await asyncio.to_thread(replica.metric, "requests_running")
            await asyncio.sleep(2 * STEP_S)
            later = await tokens(replica)
    finally:
        replica.close()
    assert running == is_resumable
    if is_resumable:
        assert before < after < later
    else:
        assert after <= before + 2  # the step that ran, and one that began as it was told
        assert later == after


async def tokens(replica: Replica) -> float:
    """How many the engine has generated."""
    return float(await asyncio.to_thread(replica.metric, "generation_tokens_total"))
