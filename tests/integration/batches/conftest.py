"""Batches on a real Redis and a real folder; requests are answered by a fake application."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis.asyncio
from tests.fakes.batch_platform import BatchPlatform

from octavo.local.redis_server import EmbeddedRedis


@pytest.fixture(scope="module")
def redis_server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
async def platform(redis_server: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[BatchPlatform]:
    async with AsyncExitStack() as stack:
        client = redis.asyncio.Redis.from_url(redis_server.url)
        stack.push_async_callback(client.aclose)
        await client.flushall()
        yield await stack.enter_async_context(BatchPlatform(client, tmp_path))
