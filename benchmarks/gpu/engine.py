"""W1 to W5 on one GPU with random weights: the engine in this process, token ids in and out.

    python -m benchmarks.gpu.engine [--models qwen3-0.6b llama-3.1-8b] [--workloads W1 W2 W3 W4 W5]

    W1  offline: 256 sequences, inputs and outputs of 100 to 1,024 tokens (uniform, seed 0)
    W2  decode: time per token at batch 1 to 256, context 960 to 1,088
    W3  prefill: 16 x 2,048 and 1 x 8,192 tokens
    W4  prefix cache: 200 requests, 2,048 shared and 128 own tokens, 64 out, on and off
    W5  serving: Poisson arrivals, 512 in, 128 out: time to first token and per output token

Floors: W2, the bytes of weights and KV over the read bandwidth that this GPU shows; W3, the
operations over the rate of its bf16 matrix product. Both are measured first, in the same run. One
record for each row goes to benchmarks/results/h200.json, beside what vLLM 0.25 took on such a
machine.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import (
    SHAPES,
    kv_bytes_per_token,
    prefill_flops,
    weight_bytes,
    write_model,
)
from benchmarks.record import RESULTS, conditions
from octavo_protocol.sampling_params import RequestOutputKind, SamplingParams
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.llm_engine import LLMEngine

# vLLM 0.25.0 on one H200, defaults, dummy weights, token ids in and out.
VLLM: dict[str, dict[str, float]] = {
    "qwen3-0.6b": {
        "W1": 23951,
        "W2 1": 1.67,
        "W2 8": 1.78,
        "W2 32": 2.59,
        "W2 64": 3.64,
        "W2 128": 5.66,
        "W2 256": 9.75,
        "W3 16x2048": 386045,
        "W3 1x8192": 249386,
        "W4 on": 0.88,
        "ready": 44.6,
    },
    "llama-3.1-8b": {
        "W1": 10142,
        "W2 1": 4.94,
        "W2 8": 5.21,
        "W2 32": 6.22,
        "W2 64": 7.48,
        "W2 128": 10.32,
        "W2 256": 17.10,
        "W3 16x2048": 42851,
        "W3 1x8192": 38067,
        "W4 on": 1.81,
        "W4 off": 11.53,
        "W5 4 ttft p50": 22.5,
        "W5 4 ttft p99": 41.9,
        "W5 4 tpot p50": 5.06,
        "W5 16 ttft p50": 25.6,
        "W5 16 ttft p99": 45.8,
        "W5 16 tpot p50": 6.15,
        "W5 32 ttft p50": 34.4,
        "W5 32 ttft p99": 68.6,
        "W5 32 tpot p50": 8.95,
        "W5 40 ttft p50": 41.3,
        "W5 40 ttft p99": 114,
        "W5 40 tpot p50": 10.90,
        "W5 48 ttft p50": 50.3,
        "W5 48 ttft p99": 147,
        "W5 48 tpot p50": 13.07,
        "ready": 41.9,
    },
}
_WORKLOADS = ("W1", "W2", "W3", "W4", "W5")


class Report:
    """Prints each row and collects the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        print(f"{'model':14}{'row':18}{'value':>12}{'unit':>10}", end="")
        print(f"{'floor':>11}{'vLLM':>11}{'to vLLM':>9}")

    def add(
        self,
        workload: str,
        model: str,
        value: float,
        unit: str,
        *,
        floor: float | None = None,
        batch: int | None = None,
        higher_is_better: bool = False,
    ) -> None:
        vllm = VLLM[model].get(workload)
        ratio = "" if vllm is None else f"{value / vllm:.2f}x"
        numbers = "".join(f"{'' if n is None else f'{n:.2f}':>11}" for n in (floor, vllm))
        print(f"{model:14}{workload:18}{value:12.2f}{unit:>10}{numbers}{ratio:>9}", flush=True)
        self.records.append(
            {
                "workload": workload,
                "model": model,
                "batch": batch,
                "value": value,
                "unit": unit,
                "floor": floor,
                "vllm": vllm,
                "higher_is_better": higher_is_better,
            }
        )


def read_bandwidth() -> float:
    """Bytes per second of reading 8 GB once, the best of several."""
    data = torch.ones(2**31, dtype=torch.float32, device="cuda").view(2**10, -1)
    times = [_seconds(lambda: torch.sum(data, dim=1)) for _ in range(8)]
    return data.numel() * 4 / min(times)


def matmul_rate() -> float:
    """bf16 operations per second of a product of 8192 x 8192 matrices, the median of several."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [_seconds(lambda: left @ right) for _ in range(12)]
    return 2 * 8192**3 / statistics.median(times[2:])


def _seconds(work: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000


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


class Bench:
    def __init__(self, model: str, report: Report, bandwidth: float, rate: float) -> None:
        self.model, self.report = model, report
        self.bandwidth, self.rate = bandwidth, rate
        self.vocab_size = SHAPES[model]["vocab_size"]
        self._folder = Path(tempfile.mkdtemp())
        self.engine: LLMEngine | None = None

    def start(self, **options: Any) -> LLMEngine:
        """A fresh engine; the one before is shut down."""
        self.stop()
        write_model(self.model, self._folder)
        settings: dict[str, Any] = {
            "load_format": "dummy",
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "max_model_len": 9216,
        }
        started = time.perf_counter()
        config = EngineConfig(model=self._folder, **(settings | options))
        self.engine = LLMEngine(config, None)
        self.ready_s = time.perf_counter() - started
        return self.engine

    def stop(self) -> None:
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None
            torch.cuda.empty_cache()

    def run(self, requests: list[tuple[list[int], int]]) -> float:
        """Seconds from the first request to the last token of all."""
        assert self.engine is not None
        started = time.perf_counter()
        for i, (prompt, length) in enumerate(requests):
            self.engine.add_request(str(i), prompt, params(length))
        num_tokens = 0
        for _, outputs in drain(self.engine):
            num_tokens += sum(len(each.outputs[0].token_ids) for each in outputs if each.finished)
        seconds = time.perf_counter() - started
        assert num_tokens == sum(length for _, length in requests)
        return seconds

    def w1(self) -> None:
        rng = random.Random(0)
        sizes = [(rng.randint(100, 1024), rng.randint(100, 1024)) for _ in range(256)]
        self.start()
        self.report.add("ready", self.model, self.ready_s, "s")
        assert self.engine is not None
        print("    stages:", {k: round(v, 2) for k, v in self.engine.info.stages.items()})
        requests = list(
            zip(prompts((i for i, _ in sizes), self.vocab_size), (o for _, o in sizes), strict=True)
        )
        self.run(requests[:16])
        self.engine.reset_prefix_cache()
        seconds = self.run(requests)
        value = sum(length for _, length in requests) / seconds
        self.report.add("W1", self.model, value, "tokens/s", higher_is_better=True)

    def w2(self) -> None:
        engine = self.start()
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
            floor = read / self.bandwidth * 1000
            self.report.add(f"W2 {batch}", self.model, value, "ms", floor=floor, batch=batch)
            engine.reset_prefix_cache()

    def w3(self) -> None:
        for count, length in ((16, 2048), (1, 8192)):
            self.start()
            requests = [(prompt, 1) for prompt in prompts([length] * count, self.vocab_size)]
            times = []
            for _ in range(3):
                times.append(self.run(requests))
                assert self.engine is not None
                self.engine.reset_prefix_cache()
            value = count * length / min(times)
            ceiling = count * length / (prefill_flops(self.model, [length] * count) / self.rate)
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
            self.start(enable_prefix_caching=is_on)
            self.run(requests[:2])
            assert self.engine is not None
            self.engine.reset_prefix_cache()
            seconds = self.run(requests)
            self.report.add(f"W4 {'on' if is_on else 'off'}", self.model, seconds, "s")

    def w5(self) -> None:
        engine = self.start()
        for rate in (4, 16, 32, 40, 48):
            rng = random.Random(rate)
            count = min(rate * 12, 400)
            due, at = [], 0.0
            for _ in range(count):
                at += rng.expovariate(rate)
                due.append(at)
            texts = prompts([512] * count, self.vocab_size, rate)
            started, added = time.perf_counter(), 0
            first: dict[str, float] = {}
            last: dict[str, float] = {}
            while len(last) < count:
                now = time.perf_counter() - started
                while added < count and due[added] <= now:
                    sampling = params(128)
                    sampling.output_kind = RequestOutputKind.DELTA
                    engine.add_request(str(added), texts[added], sampling)
                    added += 1
                if not engine.has_unfinished_requests():
                    continue
                outputs = engine.step()
                now = time.perf_counter() - started
                for each in outputs:
                    first.setdefault(each.request_id, now)
                    if each.finished:
                        last[each.request_id] = now
            ttft = sorted(1000 * (first[str(i)] - due[i]) for i in range(count))
            tpot = sorted(1000 * (last[str(i)] - first[str(i)]) / 127 for i in range(count))
            for name, values, q in (
                ("ttft p50", ttft, 0.5),
                ("ttft p99", ttft, 0.99),
                ("tpot p50", tpot, 0.5),
                ("tpot p99", tpot, 0.99),
            ):
                self.report.add(f"W5 {rate} {name}", self.model, values[int(q * (count - 1))], "ms")
            engine.reset_prefix_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--workloads", nargs="+", choices=_WORKLOADS, default=list(_WORKLOADS))
    parser.add_argument("--out", type=Path, default=RESULTS / "h200.json")
    arguments = parser.parse_args()
    bandwidth, rate = read_bandwidth(), matmul_rate()
    print(f"read {bandwidth / 1e12:.2f} TB/s, bf16 product {rate / 1e12:.0f} TFLOP/s")
    report = Report()
    for model in arguments.models:
        bench = Bench(model, report, bandwidth, rate)
        for workload in arguments.workloads:
            getattr(bench, workload.lower())()
        bench.stop()
    machine = conditions() | {"gpu": torch.cuda.get_device_name(), "read_tb_s": bandwidth / 1e12}
    machine["matmul_tflop_s"] = rate / 1e12
    arguments.out.write_text(
        json.dumps([record | machine for record in report.records], indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
