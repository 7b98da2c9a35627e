"""A replica's HTTP server over a `FakeLLM`, on a real socket in the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest
from tests.fakes.fake_llm import FakeLLM

from octavo_protocol.http_app import QUIET
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.serving import DrainingServer, bind
from octavo_runtime.engine.messages import LoRAInfo, PoolingInfo
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.state import ServerState

MAX_BODY_BYTES = 100_000
_DEADLINE_S = 60.0


@dataclass
class Replica:
    """One server under test."""

    llm: FakeLLM
    state: ServerState
    url: str
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits, not long, until `condition` holds."""
        async with asyncio.timeout(_DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def idle(self) -> None:
        """Waits until nothing runs in the engine and no request is open."""
        await self.until(lambda: self.llm.num_unfinished == 0 and self.state.num_open == 0)


def make_state(llm: FakeLLM, options: ApiOptions | None = None) -> ServerState:
    options = options or ApiOptions()
    return ServerState(
        llm=llm.as_async_llm(),
        served_names=("first", "second/alias"),
        max_body_bytes=MAX_BODY_BYTES,
        metrics=ServerMetrics(llm.as_async_llm(), options, model="first"),
        options=options,
        is_registered=True,
    )


@pytest.fixture
async def direct() -> AsyncIterator[httpx.AsyncClient]:
    """The application without a socket: fast, but it hands out whole bodies only."""
    transport = httpx.ASGITransport(create_app(make_state(FakeLLM())))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
        yield http


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with running_replica() as replica:
        yield replica


@asynccontextmanager
async def running_replica(
    options: ApiOptions | None = None,
    http_options: HttpOptions = QUIET,
    *,
    pooling: PoolingInfo | None = None,
    lora: LoRAInfo | None = None,
) -> AsyncIterator[Replica]:
    """A replica with these options on a free port. pooling: what its model can, if it pools."""
    llm = FakeLLM(pooling=pooling, lora=lora)
    state = make_state(llm, options)
    server = DrainingServer(create_app(state, http_options))
    sock = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        async with (
            httpx.AsyncClient(
                base_url=url, verify=False, trust_env=False, timeout=_DEADLINE_S
            ) as http,
            openai.DefaultAsyncHttpxClient(
                verify=False, trust_env=False, timeout=_DEADLINE_S
            ) as inner,
            openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=inner
            ) as client,
        ):
            yield Replica(llm, state, url, http, client)
    finally:
        llm.gate.set()
        server.should_exit = True
        await serving
        sock.close()
