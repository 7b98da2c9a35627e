"""A router that is killed or halted costs a client that comes back nothing but a pause."""

import asyncio
import signal
from typing import Any

import aiohttp
import pytest
from tests.fakes.event_reader import EventReader
from tests.fakes.fake_replica import words
from tests.fakes.router_cluster import RouterCluster, until
from tests.fakes.router_process import router_process

pytestmark = pytest.mark.integration

BODY: dict[str, Any] = {"model": "fake", "prompt": "hello", "stream": True}


async def test_a_killed_routers_stream_goes_on_through_another_one(cluster: RouterCluster) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.05
    replica.behaviour.num_chunks = 200
    second = await cluster.router(1)
    reader = EventReader(BODY, "k")
    async with router_process(cluster.redis.url) as first:
        reading = asyncio.create_task(reader.read(first.client))
        await until(lambda: len(reader.events) > 5)
        first.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await reading
    replica.behaviour.chunk_s = 0.0
    await reader.read(second.client)
    assert reader.text == words(200)


async def test_a_halted_router_that_wakes_up_disturbs_nobody(cluster: RouterCluster) -> None:
    """Its own client, which never left, gets the rest of what the other router generates."""
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.02
    replica.behaviour.num_chunks = 150
    second = await cluster.router(1)
    waiting, moving = EventReader(BODY, "k"), EventReader(BODY, "k")
    async with router_process(cluster.redis.url) as first:
        reading = asyncio.create_task(waiting.read(first.client))
        await until(lambda: len(waiting.events) > 5)
        first.process.send_signal(signal.SIGSTOP)
        await moving.read(second.client, until=100)
        first.process.send_signal(signal.SIGCONT)
        await moving.read(second.client)
        await asyncio.wait_for(reading, 60)
    assert moving.text == waiting.text == words(150)
    assert moving.events == waiting.events
