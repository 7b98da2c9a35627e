"""C1, C2 and C3 on the CPU, beside Hugging Face `generate` in the same process and run.

    python -m benchmarks.cpu [--dtype bfloat16] [--repeats 3] [--skip-router]

    C1  one request, 128 tokens in, 128 out
    C2  32 requests at once, 64-256 in, 64-128 out
    C3  32 requests that share a 1,024-token prefix, 16 own tokens, 32 out;
        uncached: prefix cache off; cold: on and empty; cached: on and filled by the run before

The two sides take turns, so that both meet the same noise; the medians count. Both have the same
allocator settings (`octavo_kernels.allocator`) and the same threads. Hugging Face gets its best
batching: one padded batch that runs as long as its longest output; only the tokens that were asked
for count. Then: how long `octavo serve` takes to be ready, and what the router adds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import append, conditions
from octavo.bench.offline import OfflineResult, run_requests
from octavo.bench.workload import BenchRequest, RandomWorkload
from octavo_kernels.allocator import tune_allocator
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.engine_core import EngineCore
from octavo_runtime.models.source import resolve_model

RESULTS = "cpu.jsonl"
C1 = RandomWorkload(1, (128, 128), (128, 128))
C2 = RandomWorkload(32, (64, 256), (64, 128))
C3 = RandomWorkload(32, (16, 16), (32, 32), prefix_len=1024)
READY_TIMEOUT_S = 120


class HuggingFace:
    """`generate` with left padding."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.generation_config.eos_token_id = None  # outputs have their full length

    def output_tokens_per_s(self, requests: list[BenchRequest]) -> float:
        width = max(len(r.prompt_token_ids) for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_token_ids) :] = torch.tensor(
                request.prompt_token_ids
            )
            mask[row, width - len(request.prompt_token_ids) :] = 1
        length = max(r.output_len for r in requests)
        started = time.perf_counter()
        self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        return sum(r.output_len for r in requests) / (time.perf_counter() - started)


def measure_engine(folder: Path, dtype: str, repeats: int) -> dict[str, float]:
    allocator = tune_allocator()
    core = EngineCore(EngineConfig(model=folder, dtype=dtype, max_model_len=2048))  # type: ignore[arg-type]
    plain = EngineCore(
        EngineConfig(
            model=folder,
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=2048,
            enable_prefix_caching=False,
        )
    )
    other = HuggingFace(folder, getattr(torch, dtype))
    vocab_size = core.info.vocab_size
    requests = {name: w.requests(vocab_size) for name, w in (("c1", C1), ("c2", C2), ("c3", C3))}

    def fresh(name: str) -> OfflineResult:
        core.reset_prefix_cache()
        return run_requests(core, requests[name])

    fresh("c1")
    other.output_tokens_per_s(requests["c1"][:1])
    samples: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(value)
        print(f"  {name:<14} {value:8.1f}", flush=True)

    for _ in range(repeats):
        for name in ("c1", "c2"):
            note(f"{name}_octavo", fresh(name).output_tokens_per_s)
            note(f"{name}_hf", other.output_tokens_per_s(requests[name]))
        note("c3_uncached_s", run_requests(plain, requests["c3"]).elapsed_s)
        note("c3_cold_s", fresh("c3").elapsed_s)
        note("c3_cached_s", run_requests(core, requests["c3"]).elapsed_s)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    record = {
        "workload": "c1-c3",
        "model": folder.name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "allocator": allocator,
        "repeats": repeats,
        "medians": medians,
        "samples": samples,
        **conditions(),
    }
    append(RESULTS, record)
    return medians


def measure_ready(folder: Path, repeats: int) -> float:
    """Median seconds from the start of `octavo serve` to its first 200 on /ready."""
    times = []
    for _ in range(repeats):
        port = 18431
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo", "serve", str(folder), "--port", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not _is_ready(port):
                if time.perf_counter() - started > READY_TIMEOUT_S or process.poll() is not None:
                    raise SystemExit("octavo serve did not become ready")
                time.sleep(0.02)
            times.append(time.perf_counter() - started)
        finally:
            process.terminate()
            process.wait(30)
    append(RESULTS, {"workload": "ready", "seconds": times, "model": folder.name, **conditions()})
    return statistics.median(times)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-router", action="store_true", help="only the engine and its start")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder = resolve_model(options.model)
    ready_s = measure_ready(folder, options.repeats)
    medians = {}
    for dtype in ["float32", "bfloat16"] if options.dtype == "both" else [options.dtype]:
        print(f"{dtype}: output tokens/s, seconds for C3")
        medians = measure_engine(folder, dtype, 1 if dtype == "float32" else options.repeats)
    figures = {
        "c1_vs_hf": medians["c1_octavo"] / medians["c1_hf"],
        "c2_vs_hf": medians["c2_octavo"] / medians["c2_hf"],
        "c3_cached_vs_uncached": medians["c3_uncached_s"] / medians["c3_cached_s"],
        "ready_s": ready_s,
    }
    if not options.skip_router:
        from benchmarks.router_overhead import measure

        figures |= measure()
    print("bench-cpu " + " ".join(f"{name}={value:.2f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
