"""W5 and the time until ready: the engine in its own process, as a server runs it.

Token ids go in and out; what a server adds is HTTP, tokenization and detokenization.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu.report import Report
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM

_RATES = (4, 16, 32, 40, 48)  # requests a second
_INPUT, _OUTPUT = 512, 128  # tokens
_SECONDS, _MOST = 12, 400  # of arrivals, and how many at most


async def measure_ready(config: EngineConfig, model: str, report: Report) -> None:
    """Seconds from the start of the engine process until it serves: cold, with no compiled kernel
    on the disk, then warm.
    """
    with _fresh_kernel_cache():
        for name in ("ready cold", "ready warm"):
            started = time.perf_counter()
            llm = _start(config)
            info = await llm.wait_ready()
            seconds = time.perf_counter() - started
            stages = {stage: round(value, 2) for stage, value in info.stages.items()}
            report.add(name, model, seconds, "s", stages=stages, num_graphs=info.num_graphs)
            print(f"    start {seconds - sum(stages.values()):.2f}, {stages}")
            await llm.shutdown()


async def measure_serving(
    config: EngineConfig, model: str, vocab_size: int, report: Report
) -> None:
    """W5: Poisson arrivals; time to first token, from when a request was due, and per token."""
    llm = _start(config)
    await llm.wait_ready()
    await _serve(llm, 16, 32, vocab_size)
    for rate in _RATES:
        count = min(rate * _SECONDS, _MOST)
        ttft, tpot = await _serve(llm, rate, count, vocab_size)
        for name, values in (("ttft", ttft), ("tpot", tpot)):
            for percent in (50, 99):
                value = sorted(values)[percent * (count - 1) // 100]
                row = f"W5 {rate} {name} p{percent}"
                report.add(row, model, 1000 * value, "ms", rate=rate, num_requests=count)
        await llm.reset_prefix_cache()
    await llm.shutdown()


def _start(config: EngineConfig) -> AsyncLLM:
    return AsyncLLM.start(config, Tokenizer.from_folder(config.model))


async def _serve(
    llm: AsyncLLM, rate: int, count: int, vocab_size: int
) -> tuple[list[float], list[float]]:
    """Seconds to the first token and per further token, of each request."""
    rng = random.Random(rate)
    prompts = [[rng.randrange(1000, vocab_size) for _ in range(_INPUT)] for _ in range(count)]
    started = due = time.perf_counter()
    requests = []
    for index, prompt in enumerate(prompts):
        due += rng.expovariate(rate)
        requests.append(_request(llm, f"{started}-{index}", prompt, due))
    times = await asyncio.gather(*requests)
    return [first for first, _ in times], [each for _, each in times]


async def _request(llm: AsyncLLM, name: str, prompt: list[int], due: float) -> tuple[float, float]:
    params = SamplingParams(
        temperature=0.0,
        max_tokens=_OUTPUT,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    first: float | None = None
    async for _ in llm.generate(prompt, params, name):
        last = time.perf_counter()
        first = first or last
    assert first is not None
    return first - due, (last - first) / (_OUTPUT - 1)


@contextmanager
def _fresh_kernel_cache() -> Iterator[None]:
    """Triton compiles anew, into a folder that goes away."""
    name = "TRITON_CACHE_DIR"
    before: Any = os.environ.get(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before
