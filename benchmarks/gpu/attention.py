"""Paged attention at a model's shapes, beside the chip's ceilings and torch's own attention.

    python -m benchmarks.gpu.attention [--heads 32,8,128] [--kv-cache-dtype fp8] [--sweep decode]

Decode: bytes of keys and values over time. Prefill: 4 * head_dim * heads * visible pairs over time.
Every time is the median of replays of one CUDA graph of several calls, whose block tables are
scattered over a pool far larger than the L2 cache.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.runtime.errors import OutOfResources

from octavo_kernels import AttentionMetadata, new_kv_cache, paged_attention
from octavo_kernels.gpu.attention_tile import TileConfig
from octavo_kernels.gpu.decode_attention import DecodeConfig, decode_attention
from octavo_kernels.gpu.prefill_attention import prefill_attention
from octavo_kernels.gpu.prefill_hopper import fits_hopper, prefill_hopper
from octavo_kernels.kv_cache import FP8

BLOCK_SIZE = 16
POOL_BLOCKS = 2**17
FEATURES: dict[str, Any] = {"sliding_window": 0, "soft_cap": 0.0, "alibi_slopes": None}


class Shape(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class Step(NamedTuple):
    query_lens: list[int]
    context_lens: list[int]

    def __str__(self) -> str:
        new, context = self.query_lens, self.context_lens
        if max(new) == 1:
            return f"{len(new)} decodes at {sum(context) // len(context):,}"
        if new[0] != new[-1]:
            return f"{len(new)} of {min(new):,}-{max(new):,}"
        prior = context[-1] - new[-1]
        return f"{len(new)} x {new[-1]:,}" + (f" after {prior:,}" if prior else "")


def milliseconds(calls: Sequence[Callable[[], object]], replays: int = 7) -> float:
    """Of one call: a graph of all of them, replayed."""
    try:
        for call in calls:  # what the layers of a step share is there when the graph is captured
            call()
    except OutOfResources:  # a tile too large for the shared memory
        return math.inf
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(calls))
    return statistics.median(times)


class Bench:
    """One cache of random keys and values, and steps scattered over it."""

    def __init__(self, shape: Shape, kv_dtype: torch.dtype) -> None:
        self.shape = shape
        self.key_cache, self.value_cache = new_kv_cache(
            POOL_BLOCKS,
            BLOCK_SIZE,
            shape.num_kv_heads,
            shape.head_dim,
            dtype=kv_dtype,
            device="cuda",
        )
        for cache in (self.key_cache.transpose(2, 3), self.value_cache):
            for part in torch.split(cache, POOL_BLOCKS // 8):
                part.copy_(torch.randn(part.shape, dtype=torch.bfloat16, device="cuda"))
        self.rng = np.random.default_rng(0)
        self.made: list[AttentionMetadata] = []
        self.made_for: Step | None = None

    def metadata(self, step: Step) -> AttentionMetadata:
        lens, contexts = np.array(step.query_lens), np.array(step.context_lens)
        blocks = -(-contexts // BLOCK_SIZE)
        chosen = self.rng.permutation(POOL_BLOCKS)[: blocks.sum()]
        tables = np.zeros((len(lens), blocks.max()), dtype=np.int32)
        for i, end in enumerate(np.cumsum(blocks)):
            tables[i, : blocks[i]] = chosen[end - blocks[i] : end]
        return AttentionMetadata.from_numpy(
            np.concatenate([[0], np.cumsum(lens)]),
            contexts,
            tables,
            np.zeros(lens.sum(), dtype=np.int64),
            num_decodes=len(lens) if lens.max() == 1 else 0,
            device="cuda",
        )

    def query(self, step: Step) -> Tensor:
        shape = (sum(step.query_lens), self.shape.num_heads, self.shape.head_dim)
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda")

    def num_bytes(self, step: Step) -> float:
        elements = 2.0 * sum(step.context_lens) * self.shape.num_kv_heads * self.shape.head_dim
        return elements * self.value_cache.itemsize

    def flops(self, step: Step) -> float:
        pairs = sum(
            new * (context - new) + new * (new + 1) / 2
            for new, context in zip(step.query_lens, step.context_lens, strict=True)
        )
        return 4.0 * pairs * self.shape.num_heads * self.shape.head_dim

    def layers(self, step: Step) -> list[AttentionMetadata]:
        """Enough tables that one replay reads several times the L2 cache, or at least many."""
        if self.made_for is not step:
            count = min(16, max(2, int(1e9 // self.num_bytes(step))))
            self.made, self.made_for = [self.metadata(step) for _ in range(count)], step
        return self.made

    def public(self, step: Step) -> float:
        query, out = self.query(step), torch.empty_like(self.query(step))
        caches = (self.key_cache, self.value_cache)
        return milliseconds(
            [
                partial(paged_attention, query, *caches, each, scale=self.shape.scale, out=out)
                for each in self.layers(step)
            ]
        )

    def decode(self, step: Step, **choices: Any) -> float:
        query, out = self.query(step), torch.empty_like(self.query(step))
        return milliseconds(
            [
                partial(
                    decode_attention, query, self.key_cache, self.value_cache, each, out,
                    scale=self.shape.scale, **FEATURES, **choices,
                )
                for each in self.layers(step)
            ]
        )  # fmt: skip

    def prefill(self, step: Step, config: TileConfig | None = None) -> float:
        query, out = self.query(step), torch.empty_like(self.query(step))
        each = self.metadata(step)
        return milliseconds(
            [
                partial(
                    prefill_attention, query, self.key_cache, self.value_cache,
                    each.query_start_loc, each.context_lens, each.block_tables, each.counts, out,
                    num_chunks=each.num_chunks, num_tokens=each.num_chunk_tokens,
                    scale=self.shape.scale,
                    config=config, **FEATURES,
                )
            ]
            * 3
        )  # fmt: skip

    def hopper(self, step: Step, block_n: int) -> float:
        query, out = self.query(step), torch.empty_like(self.query(step))
        each = self.metadata(step)
        return milliseconds(
            [
                partial(
                    prefill_hopper, query, self.key_cache, self.value_cache,
                    each.query_start_loc, each.context_lens, each.block_tables, each.counts, out,
                    num_chunks=each.num_chunks, num_tokens=each.num_chunk_tokens,
                    scale=self.shape.scale,
                    block_n=block_n,
                )
            ]
            * 3
        )  # fmt: skip

    def dense(self, step: Step, backend: SDPBackend) -> float:
        """torch's scaled_dot_product_attention on keys and values that lie together."""
        batch, length = len(step.query_lens), step.query_lens[0]

        def random(heads: int) -> Tensor:
            shape = (batch, length, heads, self.shape.head_dim)
            return torch.randn(shape, dtype=torch.bfloat16, device="cuda").transpose(1, 2)

        query, key, value = (random(heads) for heads in self.shape[:2] + self.shape[1:2])
        attend = partial(
            F.scaled_dot_product_attention, query, key, value, is_causal=True, enable_gqa=True
        )
        with sdpa_kernel(backend):
            return milliseconds([attend] * 3)


def ceilings() -> tuple[float, float]:
    """TB/s of reading and TFLOP/s of a bf16 product, on this machine now."""
    data = torch.randn(2**30, dtype=torch.float32, device="cuda")
    read = data.nbytes / milliseconds([partial(torch.sum, data)]) / 1e9
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return read, 2 * 8192**3 / milliseconds([partial(torch.mm, a, b)] * 5) / 1e9


def ragged(batch: int) -> Step:
    return Step([1] * batch, np.random.default_rng(0).integers(100, 2049, batch).tolist())


DECODES = [
    *(
        Step([1] * batch, [context] * batch)
        for batch, context in [
            (1, 1024), (1, 8192), (8, 1024), (8, 8192), (32, 1024), (64, 1024), (128, 1024),
            (256, 1024),
        ]
    ),
    ragged(32),
    ragged(64),
    ragged(256),
    Step([1] * 64, [1024] * 63 + [32768]),
]  # fmt: skip
PREFILLS = [
    Step([2048] * 16, [2048] * 16),
    Step([8192], [8192]),
    Step([2048], [8192]),
    Step([128] * 16, [2176] * 16),
    Step(*[np.random.default_rng(0).integers(100, 1025, 15).tolist()] * 2),
]


def table(bench: Bench) -> None:
    read, product = ceilings()
    print(f"ceilings: read {read:.2f} TB/s, bf16 product {product:.0f} TFLOP/s; {bench.shape}")
    for step in DECODES:
        time = bench.public(step)
        rate = bench.num_bytes(step) / time / 1e9
        print(f"{step!s:>24} {time * 1e3:9.1f} us {rate:6.2f} TB/s {rate / read:6.1%}")
    for step in PREFILLS:
        flops = bench.flops(step) / 1e9
        time = bench.public(step)
        line = (
            f"{step!s:>24} {time:9.3f} ms {flops / time:6.0f} TFLOP/s {flops / time / product:6.1%}"
        )
        if step.context_lens == step.query_lens and len(set(step.query_lens)) == 1:
            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                line += f"   {backend.name.lower()} {flops / bench.dense(step, backend):.0f}"
        print(line)


def sweep_decode(bench: Bench) -> None:
    configs = [
        DecodeConfig(*each)
        for each in [(64, 4, 2, 4), (64, 4, 2, 8), (64, 4, 3, 3), (128, 4, 2, 3), (32, 4, 4, 4)]
    ]
    for step in DECODES:
        times = {(config,): bench.decode(step, config=config) for config in configs}
        best = sorted(times.items(), key=lambda item: item[1])
        print(f"{step!s}: " + show(best, bench.num_bytes(step), "TB/s"))


def sweep_prefill(bench: Bench) -> None:
    configs = [TileConfig(*each) for each in [(128, 128, 8, 2), (128, 32, 4, 3), (64, 64, 4, 2)]]
    for step in PREFILLS:
        times: dict[tuple[object, ...], float] = {}
        if fits_hopper(bench.query(step), bench.key_cache, bench.value_cache):
            times |= {("hopper", block_n): bench.hopper(step, block_n) for block_n in (64, 128)}
        times |= {("any", config): bench.prefill(step, config) for config in configs}
        best = sorted(times.items(), key=lambda item: item[1])
        print(f"{step!s}: " + show(best, bench.flops(step) / 1e3, "PFLOP/s"))


def show(best: Sequence[tuple[tuple[object, ...], float]], work: float, unit: str) -> str:
    def choice(key: tuple[object, ...]) -> str:
        return " ".join(str(tuple(k) if isinstance(k, tuple) else k) for k in key)

    return (
        "; ".join(f"{choice(key)}: {work / time / 1e9:.2f}" for key, time in best[:10]) + f" {unit}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="32,8,128", help="query heads, KV heads, head dimension")
    parser.add_argument("--sweep", default="", help="decode, prefill: other tiles, best first")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    arguments = parser.parse_args()
    kv_dtype = FP8 if arguments.kv_cache_dtype == "fp8" else torch.bfloat16
    bench = Bench(Shape(*map(int, arguments.heads.split(","))), kv_dtype)
    if "prefill" in arguments.sweep:
        sweep_prefill(bench)
    if "decode" in arguments.sweep:
        sweep_decode(bench)
    table(bench)


if __name__ == "__main__":
    main()
