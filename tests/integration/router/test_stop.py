"""The router as a process: it starts, serves, drains on SIGTERM and exits with 0."""

import asyncio
import signal
import time

import pytest
from tests.fakes.router_cluster import RouterCluster, until
from tests.fakes.router_process import router_process

pytestmark = pytest.mark.integration


async def test_sigterm_lets_a_live_stream_finish_and_takes_nothing_new(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.1
    replica.behaviour.num_chunks = 15
    body = {"prompt": "hello", "stream": True}
    async with router_process(cluster.redis.url) as router:
        async with router.client.post("/v1/completions", json=body) as stream:
            await stream.content.readany()
            router.process.send_signal(signal.SIGTERM)
            await until(router.is_unready)
            async with router.client.post("/v1/completions", json=body) as refused:
                assert refused.status == 503
            rest = await stream.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(router.process.wait(), 60) == 0


async def test_during_the_drain_delay_an_unready_router_still_takes_requests(
    cluster: RouterCluster,
) -> None:
    await cluster.replica("a")
    async with router_process(cluster.redis.url, "--drain-delay", "1.5") as router:
        router.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        await until(router.is_unready)
        async with router.client.post("/v1/completions", json={"prompt": "hello"}) as response:
            assert response.status == 200
        assert await asyncio.wait_for(router.process.wait(), 60) == 0
        assert time.monotonic() - told >= 1.4


async def test_a_second_sigterm_cuts_the_drain_delay_short(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    async with router_process(cluster.redis.url, "--drain-delay", "60") as router:
        router.process.send_signal(signal.SIGTERM)
        await until(router.is_unready)
        router.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(router.process.wait(), 60) == 0
