"""The router as a process: it starts, serves, drains on SIGTERM and exits with 0."""

import asyncio
import os
import signal
import sys

import aiohttp
import pytest
from tests.fakes.router_cluster import RouterCluster, until

from octavo.local.ports import free_port

pytestmark = pytest.mark.integration


async def test_sigterm_lets_a_live_stream_finish_and_takes_nothing_new(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a")
    replica.behaviour.chunk_s = 0.1
    replica.behaviour.num_chunks = 15
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo", "router", "--port", str(port)),
        env={**os.environ, "OCTAVO_REDIS_URL": cluster.redis.url},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

            async def status(path: str) -> int:
                try:
                    async with client.get(path) as response:
                        return response.status
                except aiohttp.ClientError:
                    return 0

            async def is_ready() -> bool:
                return await status("/ready") == 200

            async def is_draining() -> bool:
                return await status("/ready") == 503

            await until(is_ready, seconds=20)
            body = {"prompt": "hello", "stream": True}
            async with client.post("/v1/completions", json=body) as stream:
                await stream.content.readany()
                process.send_signal(signal.SIGTERM)
                await until(is_draining)
                async with client.post("/v1/completions", json=body) as refused:
                    assert refused.status == 503
                rest = await stream.read()
            assert rest.endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
