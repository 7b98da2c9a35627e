"""Routers over fake replicas in this process, on real sockets and a real Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.keys import Keys
from octavo_protocol.serving import DrainingServer, bind
from octavo_router.app import create_app
from octavo_router.deployment import Deployment
from octavo_router.options import RouterOptions
from octavo_router.state import RouterState
from tests.fakes.fake_replica import FakeReplica

KEYS = Keys("default", "default")


@dataclass
class RunningRouter:
    """A router in this process. client: asks it."""

    url: str
    state: RouterState
    client: aiohttp.ClientSession

    @property
    def deployment(self) -> Deployment:
        """The one that it serves."""
        (only,) = self.state.deployments
        return only

    async def completion(self, prompt: str, **fields: Any) -> tuple[int, dict[str, Any], str]:
        """(status, body, x-octavo-route) of a text completion."""
        body = {"model": "fake", "prompt": prompt, **fields}
        async with self.client.post("/v1/completions", json=body) as response:
            return response.status, await response.json(), response.headers["x-octavo-route"]

    async def metric(self, name: str) -> float:
        async with self.client.get("/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


async def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> None:
    """Returns when `condition()` holds. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def running_router(**options: Any) -> AsyncIterator[RunningRouter]:
    """A router with these `RouterOptions` on a free port."""
    sock = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with RouterState(RouterOptions(**options)) as state:
        app = create_app(state)
        state.work_on_batches(app)
        server = DrainingServer(app, state.options)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            headers = {"content-type": "application/json"}
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(url, headers=headers, connector=connector) as client:
                yield RunningRouter(url, state, client)
        finally:
            server.should_exit = True
            await serving
            sock.close()


@dataclass
class RouterCluster:
    """Replicas and routers on one Redis."""

    redis: EmbeddedRedis
    stack: AsyncExitStack

    async def replica(self, replica_id: str, **fields: Any) -> FakeReplica:
        replica = FakeReplica(replica_id, redis_url=self.redis.url, keys=KEYS, **fields)
        return await self.stack.enter_async_context(replica)

    async def router(self, num_replicas: int, **options: Any) -> RunningRouter:
        """A router that knows `num_replicas` and their caches."""
        opened: AbstractAsyncContextManager[RunningRouter] = running_router(
            redis_url=self.redis.url, **options
        )
        router = await self.stack.enter_async_context(opened)
        await until(lambda: len(router.deployment.replicas) == num_replicas)
        return router
