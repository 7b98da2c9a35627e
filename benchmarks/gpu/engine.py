"""W1 to W5 on one GPU with random weights, token ids in and out.

    python -m benchmarks.gpu.engine [--models qwen3-0.6b llama-3.1-8b] [--workloads ready W1 …]

    ready  seconds until the engine serves, without and with compiled kernels on the disk

    W1  offline: 256 sequences, inputs and outputs of 100 to 1,024 tokens (uniform, seed 0), and
        the share of the time in which the GPU computes, from a trace of a second run
    W2  decode: time per token at batch 1 to 256, context 960 to 1,088
    W3  prefill: 16 x 2,048 and 1 x 8,192 tokens
    W4  prefix cache: 200 requests, 2,048 shared and 128 own tokens, 64 out, on and off
    W5  serving: Poisson arrivals, 512 in, 128 out: time to first token and per output token

W1 to W4 run the engine in this process; W5 in one of its own, as a server does. Floors: W2, the
bytes of weights and KV over the read bandwidth that this GPU shows; W3, the operations over the
rate of its bf16 matrix product. One record for each row goes to benchmarks/results/h200.json,
beside what vLLM 0.25 took on such a machine.
"""

import argparse
import asyncio
import gc
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.busy import gpu_busy
from benchmarks.gpu.models import (
    SHAPES,
    kv_bytes_per_token,
    prefill_flops,
    weight_bytes,
    write_model,
)
from benchmarks.gpu.report import Report
from benchmarks.gpu.serving import measure_ready, measure_serving
from benchmarks.record import RESULTS
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.llm_engine import LLMEngine

_WORKLOADS = ("ready", "W1", "W2", "W3", "W4", "W5")


def prompts(lengths: Iterable[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(1000, vocab_size) for _ in range(length)] for length in lengths]


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,
        max_tokens=max_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def drain(engine: LLMEngine) -> Iterator[tuple[float, list[Any]]]:
    """Steps until nothing is left: (time, outputs)."""
    while engine.has_unfinished_requests():
        outputs = engine.step()
        yield time.perf_counter(), outputs


def run(engine: LLMEngine, requests: list[tuple[list[int], int]]) -> float:
    """Seconds from the first request, a prompt and an output length, to the last token of all."""
    engine.reset_prefix_cache()
    started = time.perf_counter()
    for i, (prompt, length) in enumerate(requests):
        engine.add_request(str(i), prompt, params(length))
    num_tokens = 0
    for _, outputs in drain(engine):
        num_tokens += sum(len(each.outputs[0].token_ids) for each in outputs if each.finished)
    seconds = time.perf_counter() - started
    assert num_tokens == sum(length for _, length in requests)
    return seconds


class Bench:
    """The workloads of one model. folder: its config.json."""

    def __init__(self, folder: Path, model: str, report: Report) -> None:
        self.model, self.report = model, report
        self.vocab_size = SHAPES[model]["vocab_size"]
        self._folder = folder
        self._engine: LLMEngine | None = None
        self._options: dict[str, Any] = {}

    def config(self, **options: Any) -> EngineConfig:
        """Defaults for a GPU, but for a context that all workloads fit."""
        settings: dict[str, Any] = {"load_format": "dummy", "max_model_len": 9216} | options
        return EngineConfig(model=self._folder, **settings)

    def engine(self, **options: Any) -> LLMEngine:
        """One with these options and an empty prefix cache; one with others is shut down."""
        if self._engine is None or self._options != options:
            self.stop()
            self._engine = LLMEngine(self.config(is_offline=True, **options), None)
            self._options = options
        self._engine.reset_prefix_cache()
        return self._engine

    def stop(self) -> None:
        """Leaves the GPU's memory to whoever comes next."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        gc.collect()
        torch.cuda.empty_cache()

    def w1(self) -> None:
        rng = random.Random(0)
        sizes = [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(256)]
        engine = self.engine()
        requests = list(
            zip(prompts((i for i, _ in sizes), self.vocab_size), (o for _, o in sizes), strict=True)
        )
        run(engine, requests[:16])
        seconds = run(engine, requests)
        value = sum(length for _, length in requests) / seconds
        self.report.add("W1", self.model, value, "tokens/s", higher_is_better=True)
        share = gpu_busy(lambda: run(engine, requests))
        self.report.add("W1 busy", self.model, 100 * share, "%", floor=100, higher_is_better=True)

    def w2(self) -> None:
        engine = self.engine()
        for batch in (1, 8, 32, 64, 128, 256):
            for i, prompt in enumerate(prompts([960] * batch, self.vocab_size, batch)):
                engine.add_request(f"{batch}-{i}", prompt, params(128))
            times: list[float] = []
            for at, outputs in drain(engine):
                if outputs:
                    break
                times.append(at)
            for _ in drain(engine):
                pass
            value = (times[-5] - times[-69]) / 64 * 1000  # the last steps before the first end
            read = weight_bytes(self.model) + batch * 1024 * kv_bytes_per_token(self.model)
            floor = read / self.report.bandwidth * 1000
            self.report.add(f"W2 {batch}", self.model, value, "ms", floor=floor, batch=batch)
            engine.reset_prefix_cache()

    def w3(self) -> None:
        engine = self.engine()
        for count, length in ((16, 2048), (1, 8192)):
            requests = [(prompt, 1) for prompt in prompts([length] * count, self.vocab_size)]
            value = count * length / min(run(engine, requests) for _ in range(3))
            operations = prefill_flops(self.model, [length] * count)
            ceiling = count * length / (operations / self.report.rate)
            self.report.add(
                f"W3 {count}x{length}",
                self.model,
                value,
                "tokens/s",
                floor=ceiling,
                higher_is_better=True,
            )

    def w4(self) -> None:
        [shared] = prompts([2048], self.vocab_size, 1)
        requests = [(shared + own, 64) for own in prompts([128] * 200, self.vocab_size, 2)]
        for is_on in (True, False):
            engine = self.engine() if is_on else self.engine(enable_prefix_caching=False)
            run(engine, requests[:2])
            seconds = run(engine, requests)
            self.report.add(f"W4 {'on' if is_on else 'off'}", self.model, seconds, "s")

    def w5(self) -> None:
        self.stop()
        config = self.config()
        asyncio.run(measure_serving(config, self.model, self.vocab_size, self.report))

    def ready(self) -> None:
        self.stop()
        asyncio.run(measure_ready(self.config(), self.model, self.report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--workloads", nargs="+", choices=_WORKLOADS, default=list(_WORKLOADS))
    parser.add_argument("--out", type=Path, default=RESULTS / "h200.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no NVIDIA GPU here; nvidia-smi tells whether the driver does")
    report = Report()
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(write_model(model, Path(folder)), model, report)
            for workload in arguments.workloads:
                getattr(bench, workload.lower())()
                report.write(arguments.out)
            bench.stop()


if __name__ == "__main__":
    main()
