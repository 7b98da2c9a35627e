"""A router in a process of its own, for tests that stop, halt or kill it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from octavo.local.ports import free_port
from tests.fakes.router_cluster import until


@dataclass
class RouterProcess:
    """Ready for requests. client: asks it."""

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
async def router_process(redis_url: str, *flags: str) -> AsyncIterator[RouterProcess]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo", "router", "--port", str(port), *flags),
        env={**os.environ, "OCTAVO_REDIS_URL": redis_url},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            router = RouterProcess(process, client)
            await until(router.is_ready, seconds=120)
            yield router
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
