"""The router as a process: it starts, serves, drains on SIGTERM and exits with 0."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from tests.fakes.router_cluster import RouterCluster, until

from octavo.local.ports import free_port

pytestmark = pytest.mark.integration


@dataclass
class RouterProcess:
    """A router in a process of its own, ready for requests."""

    process: asyncio.subprocess.Process
    client: aiohttp.ClientSession

    async def ready(self) -> int:
        """Status of /ready; 0: nobody answers."""
        try:
            async with self.client.get("/ready") as response:
                return response.status
        except aiohttp.ClientError:
            return 0

    async def is_ready(self) -> bool:
        return await self.ready() == 200

    async def is_unready(self) -> bool:
        return await self.ready() == 503


@asynccontextmanager
async def router_process(cluster: RouterCluster, *flags: str) -> AsyncIterator[RouterProcess]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo", "router", "--port", str(port), *flags),
        env={**os.environ, "OCTAVO_REDIS_URL": cluster.redis.url},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            router = RouterProcess(process, client)
            await until(router.is_ready, seconds=20)
            yield router
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_lets_a_live_stream_finish_and_takes_nothing_new(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.1
    replica.behaviour.num_chunks = 15
    body = {"prompt": "hello", "stream": True}
    async with router_process(cluster) as router:
        async with router.client.post("/v1/completions", json=body) as stream:
            await stream.content.readany()
            router.process.send_signal(signal.SIGTERM)
            await until(router.is_unready)
            async with router.client.post("/v1/completions", json=body) as refused:
                assert refused.status == 503
            rest = await stream.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(router.process.wait(), 10) == 0


async def test_during_the_drain_delay_an_unready_router_still_takes_requests(
    cluster: RouterCluster,
) -> None:
    await cluster.replica("a")
    async with router_process(cluster, "--drain-delay", "1.5") as router:
        router.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        await until(router.is_unready)
        async with router.client.post("/v1/completions", json={"prompt": "hello"}) as response:
            assert response.status == 200
        assert await asyncio.wait_for(router.process.wait(), 10) == 0
        assert time.monotonic() - told >= 1.4


async def test_a_second_sigterm_cuts_the_drain_delay_short(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    async with router_process(cluster, "--drain-delay", "60") as router:
        router.process.send_signal(signal.SIGTERM)
        await until(router.is_unready)
        router.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(router.process.wait(), 10) == 0
