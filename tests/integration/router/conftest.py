"""A router over fakes, on real sockets and a real Redis."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from tests.fakes.router_cluster import RouterCluster

from octavo.local.redis_server import EmbeddedRedis


@pytest.fixture
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
async def cluster(redis_server: EmbeddedRedis) -> AsyncIterator[RouterCluster]:
    async with AsyncExitStack() as stack:
        yield RouterCluster(redis_server, stack)
