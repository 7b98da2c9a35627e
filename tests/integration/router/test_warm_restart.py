"""Routers share one truth, and a new one knows it at once."""

from contextlib import AsyncExitStack

import pytest
from tests.fakes.fake_presence import FakePresence, new_record
from tests.fakes.router_cluster import KEYS, RunningRouter, running_router, until

from octavo.local.redis_server import EmbeddedRedis

pytestmark = pytest.mark.integration

NUM_REPLICAS = 10
NUM_BLOCKS = 100_000  # of each


def block(replica: int, number: int) -> bytes:
    return replica.to_bytes(8) + number.to_bytes(8)


async def cached(redis_url: str, stack: AsyncExitStack) -> list[FakePresence]:
    """What ten replicas tell, each with its own hundred thousand blocks."""
    presences = []
    for replica in range(NUM_REPLICAS):
        record = new_record(f"r{replica}", url="http://127.0.0.1:9")
        presence = FakePresence(redis_url, KEYS, lambda record=record: record)  # type: ignore[misc]
        presence.cached = dict.fromkeys(block(replica, number) for number in range(NUM_BLOCKS))
        await presence.start()
        stack.push_async_callback(presence.stop, is_clean=True)
        presences.append(presence)
    return presences


def depths(router: RunningRouter) -> list[dict[str, int]]:
    """How much of one prompt of each replica's every replica holds, by the router's index."""
    prompts = ([block(replica, n) for n in range(640)] for replica in range(NUM_REPLICAS))
    return [dict(router.deployment.index.match(prompt)) for prompt in prompts]


async def test_a_new_router_knows_the_million_blocks_that_the_others_know(
    redis_server: EmbeddedRedis,
) -> None:
    async with AsyncExitStack() as stack:
        presences = await cached(redis_server.url, stack)
        routers: list[RunningRouter] = []
        for _ in range(2):
            opened = running_router(redis_url=redis_server.url)
            router = await stack.enter_async_context(opened)
            index = router.deployment.index
            await until(
                lambda index=index: index.num_entries == NUM_REPLICAS * NUM_BLOCKS,  # type: ignore[misc]
                seconds=120,
            )
            routers.append(router)
        incarnations = [record.incarnation for record in routers[0].deployment.replicas.records]
        assert len(incarnations) == len(presences)
        expected = depths(routers[0])
        assert sorted(next(iter(each)) for each in expected) == sorted(incarnations)
        assert [list(each.values()) for each in expected] == [[640]] * NUM_REPLICAS
        assert depths(routers[1]) == expected
        for presence in presences:
            assert presence.num_snapshots == 1  # nobody had to write another one
        await presences[0].evict([block(0, 0)])
        await until(
            lambda: all(router.deployment.index.num_entries < 1_000_000 for router in routers)
        )
        assert depths(routers[0]) == depths(routers[1]) != expected
