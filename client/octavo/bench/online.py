"""Load on a running server over HTTP: streams of answers, timed chunk by chunk."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from octavo.bench.arrivals import Arrivals
from octavo.bench.backends import BACKENDS, Backend, BackendName, Prompt
from octavo.bench.workload import BenchRequest, as_text
from octavo_protocol.errors import UnavailableError
from octavo_protocol.tokenizer import Tokenizer

# Lines of a stream may be long (logprobs); aiohttp's default reader limit is 64 KiB.
_READ_BYTES = 1 << 20
_RETRY_S = 0.5


@dataclass(slots=True)
class StreamTimes:
    """Times of one request in seconds. gaps: between successive chunks with text.

    start: from the start of the run. ttft is the time to the first token, not to the first byte.
    """

    start: float = 0.0
    ttft: float = 0.0
    total: float = 0.0
    gaps: list[float] = field(default_factory=list)
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    text: str = ""
    error: str | None = None
    num_cached_tokens: int = 0

    @property
    def tpot(self) -> float:
        return (self.total - self.ttft) / max(1, self.num_output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Target:
    """The server and how it is asked. body: fields on top of every request's."""

    base_url: str
    model: str
    backend: BackendName = "openai"
    endpoint: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None

    @property
    def url(self) -> str:
        return self.base_url.rstrip("/") + (self.endpoint or self.format.endpoint)

    @property
    def format(self) -> Backend:
        return BACKENDS[self.backend]

    def request(self, request: BenchRequest) -> dict[str, Any]:
        """The body that asks for `request`."""
        prompt: Prompt = request.prompt_token_ids
        if request.text is not None or not self.format.takes_token_ids:
            prompt = request.text or as_text(request.prompt_token_ids, self.tokenizer)
        model = request.adapter or self.model
        return {**self.format.body(model, prompt, request.output_len), **self.body}


async def run_load(
    target: Target,
    requests: Sequence[BenchRequest],
    *,
    arrivals: Arrivals = Arrivals(),  # noqa: B008  (immutable)
    max_concurrency: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, list[StreamTimes]]:
    """(seconds in all, times of each request). Requests that carry a time are sent then."""
    limit = asyncio.Semaphore(max_concurrency or max(1, len(requests)))
    drawn = arrivals.times(len(requests), seed)
    times = [
        at if request.arrival_s is None else request.arrival_s - (requests[0].arrival_s or 0.0)
        for at, request in zip(drawn, requests, strict=True)
    ]

    async def one(session: aiohttp.ClientSession, request: BenchRequest, at: float) -> StreamTimes:
        await asyncio.sleep(started + at - time.perf_counter())
        async with limit:
            result = StreamTimes(start=time.perf_counter() - started)
            await stream(session, target, request, result)
        if progress is not None:
            progress(1)
        return result

    async with open_session(target) as session:
        started = time.perf_counter()
        results = await asyncio.gather(
            *(one(session, request, at) for request, at in zip(requests, times, strict=True))
        )
        return time.perf_counter() - started, results


async def warm_up(target: Target, request: BenchRequest, count: int) -> None:
    """Sends `request` so many times, one after the other. Raises `UnavailableError`."""
    async with open_session(target) as session:
        for _ in range(count):
            result = StreamTimes()
            await stream(session, target, request, result)
            if result.error is not None:
                raise UnavailableError(f"the first request failed: {result.error}")


async def wait_until_ready(target: Target, request: BenchRequest, timeout_s: float) -> None:
    """Sends `request` until it is answered. Raises `UnavailableError` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await warm_up(target, request, 1)
        except UnavailableError:
            if time.monotonic() + _RETRY_S > deadline:
                raise
        await asyncio.sleep(_RETRY_S)


def open_session(target: Target) -> aiohttp.ClientSession:
    """The client for all requests of a run."""
    return aiohttp.ClientSession(
        headers=dict(target.headers),
        timeout=aiohttp.ClientTimeout(total=None, connect=30),
        connector=aiohttp.TCPConnector(limit=0),
    )


async def stream(
    session: aiohttp.ClientSession, target: Target, request: BenchRequest, times: StreamTimes
) -> None:
    """Sends one request and fills `times`; what goes wrong is its `error`."""
    body = target.request(request)
    times.num_input_tokens = len(request.prompt_token_ids)
    started = last = time.perf_counter()
    texts: list[str] = []
    try:
        async with session.post(target.url, json=body, read_bufsize=_READ_BYTES) as response:
            if response.status != 200:
                times.error = f"{response.status}: {(await response.text())[:200]}"
                return
            if not target.format.is_streamed:
                answer = target.format.read(await response.json())
                times.num_input_tokens = answer.prompt_tokens or times.num_input_tokens
                last = time.perf_counter()
                times.ttft = last - started
                texts.append("")
                return
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                now = time.perf_counter()
                event = target.format.read(json.loads(line[6:]))
                times.num_input_tokens = event.prompt_tokens or times.num_input_tokens
                times.num_output_tokens = event.completion_tokens or times.num_output_tokens
                times.num_cached_tokens = event.cached_tokens or times.num_cached_tokens
                if event.error is not None:
                    times.error = event.error
                    return
                if event.text is None:
                    continue
                texts.append(event.text)
                if times.ttft == 0.0:
                    times.ttft = now - started
                else:
                    times.gaps.append(now - last)
                last = now
        if not texts:
            times.error = "the stream had no output"
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        times.error = f"{type(error).__name__}: {error}"
    finally:
        times.total = last - started
        times.text = "".join(texts)
