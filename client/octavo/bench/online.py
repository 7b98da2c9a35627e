"""Load on a running server over HTTP: streaming completions of token-id prompts."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from octavo.bench.statistics import mean, percentile
from octavo.bench.workload import BenchRequest

# Lines of a stream may be long (logprobs); aiohttp's default reader limit is 64 KiB.
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class StreamTimes:
    """Times of one request in seconds. gaps: between successive chunks with text.

    ttft is the time to the first token, not to the first byte.
    """

    ttft: float = 0.0
    total: float = 0.0
    gaps: list[float] = field(default_factory=list)
    num_output_tokens: int = 0
    error: str | None = None

    @property
    def tpot(self) -> float:
        return (self.total - self.ttft) / max(1, self.num_output_tokens - 1)


async def run_load(
    base_url: str,
    model: str,
    requests: Sequence[BenchRequest],
    *,
    request_rate: float = float("inf"),
    max_concurrency: int | None = None,
    api_key: str | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> tuple[float, list[StreamTimes]]:
    """(seconds in all, times of each request). Arrivals are Poisson, `request_rate` a second."""
    limit = asyncio.Semaphore(max_concurrency or len(requests))
    rng = random.Random(seed)
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=30)
    connector = aiohttp.TCPConnector(limit=0)

    async def one(session: aiohttp.ClientSession, request: BenchRequest) -> StreamTimes:
        async with limit:
            times = await _stream(session, base_url, model, request)
        if progress is not None:
            progress(1)
        return times

    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        started = time.perf_counter()
        tasks = []
        for request in requests:
            tasks.append(asyncio.create_task(one(session, request)))
            if request_rate != float("inf"):
                await asyncio.sleep(rng.expovariate(request_rate))
        results = await asyncio.gather(*tasks)
        return time.perf_counter() - started, results


async def _stream(
    session: aiohttp.ClientSession, base_url: str, model: str, request: BenchRequest
) -> StreamTimes:
    times = StreamTimes()
    body = {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": request.output_len,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = last = time.perf_counter()
    try:
        async with session.post(
            f"{base_url}/v1/completions", json=body, read_bufsize=_READ_BYTES
        ) as response:
            if response.status != 200:
                times.error = f"{response.status}: {(await response.text())[:200]}"
                return times
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                now = time.perf_counter()
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    times.error = str(chunk["error"].get("message"))
                    return times
                if chunk.get("usage"):
                    times.num_output_tokens = chunk["usage"]["completion_tokens"]
                if not chunk.get("choices"):
                    continue
                if times.ttft == 0.0:
                    times.ttft = now - started
                else:
                    times.gaps.append(now - last)
                last = now
    except aiohttp.ClientError as error:
        times.error = f"{type(error).__name__}: {error}"
    times.total = last - started
    return times


def summarise(
    seconds: float, requests: Sequence[BenchRequest], results: Sequence[StreamTimes]
) -> dict[str, Any]:
    """Keys are those of `vllm bench serve`; times in milliseconds, of completed requests."""
    done = [
        (request, times)
        for request, times in zip(requests, results, strict=True)
        if times.error is None
    ]
    num_input = sum(len(request.prompt_token_ids) for request, _ in done)
    num_output = sum(times.num_output_tokens for _, times in done)
    summary: dict[str, Any] = {
        "duration": seconds,
        "completed": len(done),
        "failed": len(results) - len(done),
        "errors": sorted({times.error for times in results if times.error is not None}),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(done) / seconds,
        "output_throughput": num_output / seconds,
        "total_token_throughput": (num_input + num_output) / seconds,
    }
    samples = {
        "ttft": [times.ttft for _, times in done],
        "tpot": [times.tpot for _, times in done if times.num_output_tokens > 1],
        "itl": [gap for _, times in done for gap in times.gaps],
        "e2el": [times.total for _, times in done],
    }
    for name, values in samples.items():
        milliseconds = [value * 1000 for value in values]
        summary[f"mean_{name}_ms"] = mean(milliseconds)
        for label, percent in (("median", 50), ("p90", 90), ("p99", 99)):
            summary[f"{label}_{name}_ms"] = percentile(milliseconds, percent)
    return summary
