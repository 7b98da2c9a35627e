"""Micro-benchmark of the CPU kernels at SmolLM2-135M's shapes: medians, candidates interleaved.

    python benchmarks/kernels_cpu.py [--quick] [--threads N] [--only linear,attention,elementwise]

Appends one JSON record per measurement to benchmarks/results/kernels_cpu.jsonl. Outputs of the
candidates are compared before they are timed. Weights are those of 30 layers in turn, so that they
come from memory as in a model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "kernels"))

import octavo_kernels as kernels  # noqa: E402
from octavo_kernels.reference import activation as reference_activation  # noqa: E402
from octavo_kernels.reference import norm as reference_norm  # noqa: E402
from octavo_kernels.reference import rotary as reference_rotary  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "kernels_cpu.jsonl"
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 576, 1536, 9, 3, 64, 30, 49152
BLOCK_SIZE = 16
Candidate = Callable[[], Any]


def medians_us(candidates: dict[str, Candidate], repeats: int) -> dict[str, float]:
    """Median microseconds of each, taken in turn so that a noisy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
        candidate()
    for _ in range(repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            times[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(each) * 1e6, 2) for name, each in times.items()}


def each_weight(
    multiply: Callable[[Any, Any], torch.Tensor], x: torch.Tensor, weights: Sequence[Any]
) -> None:
    for weight in weights:
        multiply(x, weight)


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    parts = {key.strip(): value.strip() for key, value in fields.items()}
    return f"{parts.get('model name')} family {parts.get('cpu family')} model {parts.get('model')}"


class Recorder:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.conditions = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", "kernels")),
            "command": "python benchmarks/kernels_cpu.py " + " ".join(sys.argv[1:]),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpu": cpu_model(),
            "threads": torch.get_num_threads(),
            "spin": os.environ.get("GOMP_SPINCOUNT", "default"),
            "backend": str(kernels.cpu_backend()),
            "allocator": kernels.tune_allocator(),
            "repeats": arguments.repeats,
        }

    def add(self, what: str, **record: Any) -> None:
        # Load says how far to trust a row: above the thread count, others were running.
        row = {"what": what, **record, "load_1m": round(os.getloadavg()[0], 2), **self.conditions}
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(what, json.dumps(record), flush=True)


def floors(recorder: Recorder) -> None:
    threads = torch.get_num_threads()
    data = torch.randn(64 * 2**20)
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        read = medians_us({"sum": data.sum}, 7)["sum"]
        record = {"threads_used": count, "read_gb_per_s": round(data.nbytes / read / 1e3, 1)}
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(1024, 1024).to(dtype)
            packed = kernels.pack_linear_weight(a)
            product = medians_us({"mm": partial(kernels.linear, a, packed)}, 7)["mm"]
            record[f"gflops_{dtype}".replace("torch.", "")] = round(2 * 1024**3 / product / 1e3, 1)
        recorder.add("floor", **record)
    torch.set_num_threads(threads)


def linear(recorder: Recorder, repeats: int, tokens: list[int]) -> None:
    shapes = {
        "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
        "o": (HIDDEN, HIDDEN),
        "gate_up": (HIDDEN, 2 * INTERMEDIATE),
        "down": (INTERMEDIATE, HIDDEN),
        "lm_head": (HIDDEN, VOCAB),
    }
    for dtype in (torch.float32, torch.bfloat16):
        for name, (in_features, out_features) in shapes.items():
            copies = 1 if name == "lm_head" else LAYERS
            weights = [
                (torch.randn(out_features, in_features) * 0.02).to(dtype) for _ in range(copies)
            ]
            transposed = [each.t().contiguous() for each in weights]
            packed = [kernels.pack_linear_weight(each) for each in weights]
            for count in tokens:
                if name == "lm_head" and count > 32:
                    continue
                x = torch.randn(count, in_features).to(dtype)
                torch.testing.assert_close(
                    kernels.linear(x, packed[0]), F.linear(x, weights[0]), atol=0.02, rtol=0.02
                )
                times = medians_us(
                    {
                        "F.linear": partial(each_weight, F.linear, x, weights),
                        "mm": partial(each_weight, torch.mm, x, transposed),
                        "packed": partial(each_weight, kernels.linear, x, packed),
                    },
                    repeats if count < 128 else max(3, repeats // 3),
                )
                each = {key: round(value / copies, 1) for key, value in times.items()}
                best = each["packed"]
                recorder.add(
                    "linear",
                    shape=name,
                    tokens=count,
                    dtype=str(dtype),
                    median_us=each,
                    packed_gb_per_s=round(weights[0].nbytes / best / 1e3, 1),
                    packed_gflops=round(2 * count * in_features * out_features / best / 1e3, 1),
                )


def attention_batch(
    query_lens: list[int], contexts: list[int], shared: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, kernels.AttentionMetadata]:
    lens, context_lens = np.array(query_lens), np.array(contexts)
    counts = -(-context_lens // BLOCK_SIZE)
    num_blocks = int(counts.sum())
    order = np.random.default_rng(0).permutation(num_blocks)
    tables = np.zeros((len(lens), counts.max()), dtype=np.int32)
    first = np.cumsum(counts) - counts
    for i, count in enumerate(counts):
        tables[i, :count] = order[first[i] : first[i] + count]
    tables[:, : shared // BLOCK_SIZE] = tables[0, : shared // BLOCK_SIZE]
    starts = np.concatenate([[0], np.cumsum(lens)])
    metadata = kernels.AttentionMetadata.from_numpy(
        starts,
        context_lens,
        tables,
        np.zeros(starts[-1], int),
        num_decodes=int((lens == 1).sum()),
    )
    shapes = kernels.kv_cache_shapes(num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape).to(dtype) for shape in shapes)
    return torch.randn(int(starts[-1]), HEADS, HEAD_DIM).to(dtype), keys, values, metadata


def attention(recorder: Recorder, repeats: int) -> None:
    decode_contexts = np.random.default_rng(0).integers(100, 250, 32).tolist()
    cases: dict[str, tuple[list[int], list[int], int]] = {
        "C1 decode": ([1], [200], 0),
        "C2 decode": ([1] * 32, decode_contexts, 0),
        "C2 mixed": ([1] * 30 + [64, 192], [*decode_contexts[:30], 64, 192], 0),
        "C2 prefill 256": ([256], [256], 0),
        "C3 decode": ([1] * 32, [1100] * 32, 1024),
        "C3 prefill": ([1024], [1024], 0),
    }
    scale = HEAD_DIM**-0.5
    for dtype in (torch.float32, torch.bfloat16):
        for name, case in cases.items():
            batch = attention_batch(*case, dtype)

            def run(backend: str, batch: Any = batch) -> torch.Tensor:
                with kernels.use_cpu_backend(backend):
                    return kernels.paged_attention(*batch, scale=scale)

            torch.testing.assert_close(run("auto"), run("torch"), atol=0.03, rtol=0.03)
            times = medians_us(
                {"auto": partial(run, "auto"), "torch": partial(run, "torch")}, repeats
            )
            lens, contexts = np.array(case[0]), np.array(case[1])
            pairs = float((lens * contexts - lens * (lens - 1) / 2).sum())
            flops = 4 * pairs * HEADS * HEAD_DIM
            recorder.add(
                "attention",
                case=name,
                dtype=str(dtype),
                median_us=times,
                auto_gflops=round(flops / times["auto"] / 1e3, 1),
            )


def elementwise(recorder: Recorder, repeats: int, tokens: list[int]) -> None:
    table = torch.randn(8192, HEAD_DIM)
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.rand(HIDDEN).to(dtype)
        shapes = kernels.kv_cache_shapes(64, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        key_cache, value_cache = (torch.zeros(shape, dtype=dtype) for shape in shapes)
        for count in tokens:
            x, residual = torch.randn(2, count, HIDDEN).to(dtype)
            gate_up = torch.randn(count, 2 * INTERMEDIATE).to(dtype)
            qkv = torch.randn(count, HEADS + 2 * KV_HEADS, HEAD_DIM).to(dtype)
            positions = torch.arange(count)
            rotary = (
                qkv[:, :HEADS],
                qkv[:, HEADS : HEADS + KV_HEADS],
                qkv[:, HEADS + KV_HEADS :],
                table,
                positions,
                key_cache,
                value_cache,
                positions,
            )
            pairs: dict[str, tuple[Candidate, Candidate]] = {
                "rms_norm": (
                    partial(kernels.rms_norm, x, weight, 1e-5),
                    partial(reference_norm.rms_norm, x, weight, 1e-5),
                ),
                "add_rms_norm": (
                    partial(kernels.add_rms_norm, x, residual, weight, 1e-5),
                    partial(reference_norm.add_rms_norm, x, residual, weight, 1e-5),
                ),
                "silu_and_mul": (
                    partial(kernels.silu_and_mul, gate_up),
                    partial(reference_activation.silu_and_mul, gate_up),
                ),
                "rotary_and_cache": (
                    partial(kernels.rotary_and_cache, *rotary),
                    partial(reference_rotary.rotary_and_cache, *rotary),
                ),
            }
            for name, (fast, plain) in pairs.items():
                times = medians_us({"auto": fast, "reference": plain}, 5 * repeats)
                recorder.add(
                    "elementwise", op=name, tokens=count, dtype=str(dtype), median_us=times
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="few shapes and repeats")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--only", default="floor,linear,attention,elementwise")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.repeats = 5 if arguments.quick else 11
    tokens = [1, 32] if arguments.quick else [1, 4, 32, 128, 512]
    torch.manual_seed(0)
    RESULTS.parent.mkdir(exist_ok=True)
    recorder = Recorder(arguments)
    wanted = arguments.only.split(",")
    with torch.inference_mode():
        if "floor" in wanted:
            floors(recorder)
        if "attention" in wanted:
            attention(recorder, arguments.repeats)
        if "elementwise" in wanted:
            elementwise(recorder, arguments.repeats, tokens)
        if "linear" in wanted:
            linear(recorder, arguments.repeats, tokens)


if __name__ == "__main__":
    main()
