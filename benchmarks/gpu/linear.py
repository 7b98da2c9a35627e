"""Linear layers of few rows on a GPU: our kernels beside cuBLAS and the floor of the memory.

    PYTHONPATH=kernels:. python benchmarks/gpu/linear.py            # table of all shapes and rows
    PYTHONPATH=kernels:. python benchmarks/gpu/linear.py --chain    # the four linears of a layer
    PYTHONPATH=kernels:. python benchmarks/gpu/linear.py --tune     # writes linear_h200.py anew

Replays of CUDA graphs that take a new copy of the weight each time, more copies than fit the L2
cache; medians. A gated row is the product with SiLU-and-mul; beside it stand cuBLAS and one
elementwise kernel. The floor is the bytes of the weight at the measured read rate.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_kernels.gpu import linear as gpu
from octavo_kernels.gpu.linear_plans import (
    ROW_BUCKETS,
    DotProducts,
    Plan,
    Shape,
    Streams,
    Tiles,
    choose_plan,
)

READ_RATE = 4.55e12  # bytes/s
ROTATION = 300_000_000  # bytes of weights in turn: five times the L2 cache
SHARED_MEMORY = 220_000  # bytes a program may take
PROCESSORS = 132
SHAPES = {
    "8B qkv": Shape(6144, 4096, False),
    "8B o": Shape(4096, 4096, False),
    "8B gate_up": Shape(28672, 4096, False),
    "8B gated": Shape(14336, 4096, True),
    "8B down": Shape(4096, 14336, False),
    "8B lm_head": Shape(128256, 4096, False),
    "0.6B qkv": Shape(4096, 1024, False),
    "0.6B o": Shape(1024, 2048, False),
    "0.6B gate_up": Shape(6144, 1024, False),
    "0.6B gated": Shape(3072, 1024, True),
    "0.6B down": Shape(1024, 3072, False),
    "0.6B lm_head": Shape(151936, 1024, False),
}
LAYERS = {"8B": ("qkv", "o", "gated", "down"), "0.6B": ("qkv", "o", "gated", "down")}
Call = Callable[[Tensor], Tensor]

# block_n, block_k, stages, warps
_TILES = {
    16: [
        *((64, 128, 5, 4), (64, 128, 3, 4), (64, 256, 4, 4), (64, 256, 3, 4), (128, 64, 6, 4)),
        *((128, 128, 4, 4), (128, 128, 5, 8), (32, 256, 4, 4), (32, 128, 6, 4), (16, 256, 6, 4)),
    ],
    32: [
        *((64, 128, 5, 4), (64, 256, 3, 4), (128, 64, 6, 4), (128, 128, 4, 4), (128, 128, 4, 8)),
        *((32, 256, 4, 4), (32, 128, 6, 4)),
    ],
    64: [
        *((64, 128, 4, 4), (64, 64, 6, 4), (128, 64, 5, 4), (128, 64, 4, 4), (128, 128, 3, 4)),
        *((32, 256, 3, 4), (32, 128, 6, 4)),
    ],
    128: [(64, 64, 5, 4), (64, 128, 4, 8), (128, 64, 5, 8), (128, 128, 3, 8), (32, 128, 5, 4)],
}
# block_n, block_k, slices, warps
_STREAMS = [
    *((64, 128, 1, 4), (64, 256, 1, 4), (32, 256, 1, 4), (128, 128, 1, 8), (16, 128, 4, 4)),
    *((16, 64, 4, 4), (16, 128, 8, 8), (16, 64, 8, 8), (32, 64, 8, 8), (32, 64, 4, 4)),
    *((8, 128, 4, 4), (8, 128, 8, 8), (8, 256, 4, 4), (8, 64, 8, 8), (8, 256, 8, 8)),
]
# block_n, block_k, warps
_DOT_PRODUCTS = [
    *((8, 1024, 4), (16, 512, 4), (4, 2048, 4), (16, 1024, 8), (8, 512, 4), (4, 1024, 4)),
    *((8, 256, 2), (4, 512, 2)),
]


def candidates(num_rows: int, shape: Shape) -> list[Plan]:
    """Those worth a measurement: programs enough for the chip, no more splits than that asks."""
    halves = 2 if shape.is_gated else 1
    plans: list[Plan] = []
    for block_m in {max(16, num_rows), max(64, num_rows)}:
        for block_n, block_k, most_stages, warps in _TILES[block_m]:
            stage = (halves * block_n + block_m) * block_k * 2
            stages = min(most_stages, SHARED_MEMORY // stage)
            num_tiles = math.ceil(shape.num_columns / block_n)
            most = 8 * PROCESSORS * max(1, num_tiles // PROCESSORS)
            for splits in (1, 2, 3, 4, 6, 8):
                is_needed = splits == 1 or num_tiles * splits // 2 < 2 * PROCESSORS
                if stages > 1 and is_needed and 90 <= num_tiles * splits <= most:
                    plans += [
                        Tiles(block_m, block_n, block_k, splits, stages, warps, prefetch)
                        for prefetch in ((0, 256) if splits in (1, 2, 4) else (256,))
                    ]
    if num_rows <= 32:
        for block_n, block_k, slices, warps in _STREAMS:
            rows = max(num_rows, 8 if block_n >= 16 else 16)
            if block_k * slices <= shape.in_features and rows * block_k * slices <= 2048 * warps:
                plans.append(Streams(rows, block_n // halves, block_k, slices, warps))
    if num_rows <= 2:
        plans += [
            DotProducts(block_n // halves, block_k, warps)
            for block_n, block_k, warps in _DOT_PRODUCTS
            if block_k <= shape.in_features and num_rows * block_n * block_k <= 4096 * warps
        ]
    return plans


def graph_us(calls: Sequence[Callable[[], object]], repeats: int = 5) -> float:
    """Median microseconds of one of `calls`, replayed one after another as a graph."""
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return float(statistics.median(times))


def each_us(call: Call, weights: Sequence[Tensor]) -> float:
    rounds = math.ceil(16 / len(weights)) if weights[0].numel() < 2**29 else 4
    return graph_us([partial(call, weight) for weight in [*weights] * rounds])


def copies(shape: Shape) -> list[Tensor]:
    size = (shape.num_columns * (2 if shape.is_gated else 1), shape.in_features)
    count = max(1, math.ceil(ROTATION / (math.prod(size) * 2)))
    scale = shape.in_features**-0.5
    return [torch.randn(size, device="cuda", dtype=torch.bfloat16) * scale for _ in range(count)]


def floor_us(shape: Shape) -> float:
    size = shape.num_columns * shape.in_features * 2 * (2 if shape.is_gated else 1)
    return size / READ_RATE * 1e6


def ours(x: Tensor, arrivals: Tensor, plan: Plan, shape: Shape, overlap: bool = True) -> Call:
    return lambda weight: gpu.linear(
        x, weight, arrivals, plan, is_gated=shape.is_gated, overlap=overlap
    )


def cublas(x: Tensor, shape: Shape) -> Call:
    def call(weight: Tensor) -> Tensor:
        y = F.linear(x, weight)
        half = shape.num_columns
        return torch.mul(y[:, :half], y[:, half:]) if shape.is_gated else y

    return call


def is_right(x: Tensor, weight: Tensor, arrivals: Tensor, plan: Plan, shape: Shape) -> bool:
    expected = x.float() @ weight.float().T
    if shape.is_gated:
        gate, up = expected.chunk(2, -1)
        expected = F.silu(gate) * up
    first, second = (ours(x, arrivals, plan, shape)(weight) for _ in range(2))
    error = (first.float() - expected).norm() / expected.norm()
    return bool(error < 6e-3) and torch.equal(first, second)


def table() -> None:
    print(f"{'shape':13} rows {'ours ms':>8} {'cuBLAS':>8} {'floor':>8}  TB/s  plan")
    for name, shape in SHAPES.items():
        weights = copies(shape)
        arrivals = gpu.new_arrivals(weights[0])
        for num_rows in ROW_BUCKETS:
            x = torch.randn(num_rows, shape.in_features, device="cuda", dtype=torch.bfloat16)
            theirs = each_us(cublas(x, shape), weights)
            plan = choose_plan(num_rows, shape)
            time = theirs
            if plan is not None:
                assert is_right(x, weights[0], arrivals, plan, shape), (name, num_rows, plan)
                time = each_us(ours(x, arrivals, plan, shape), weights)
            floor = floor_us(shape)
            print(
                f"{name:13} {num_rows:4} {time / 1e3:8.4f} {theirs / 1e3:8.4f} {floor / 1e3:8.4f}"
                f"  {floor / time * READ_RATE / 1e12:4.2f}  {plan or 'cuBLAS'}"
            )


def layer(
    x: Tensor,
    weights: Sequence[Tensor],
    shapes: Sequence[Shape],
    plans: Sequence[Plan | None],
    arrivals: Tensor,
    overlap: bool,
) -> Tensor:
    """The linears of a layer in turn, each on the memory that the one before it has written."""
    for weight, shape, plan in zip(weights, shapes, plans, strict=True):
        x = x.flatten()[: len(x) * shape.in_features].view(len(x), shape.in_features)
        call = ours(x, arrivals, plan, shape, overlap) if plan else cublas(x, shape)
        x = call(weight)
    return x


def chain() -> None:
    print(f"{'layer':6} rows {'overlapping':>12} {'in turn':>8} {'cuBLAS':>8} {'floor':>8}  us")
    for model, names in LAYERS.items():
        shapes = [SHAPES[f"{model} {name}"] for name in names]
        weights = [copies(shape) for shape in shapes]
        arrivals = gpu.new_arrivals(max((each[0] for each in weights), key=len))
        layers = list(zip(*(each[:24] * 4 for each in weights), strict=False))[:24]
        floor = sum(floor_us(shape) for shape in shapes)
        for num_rows in ROW_BUCKETS:
            x = torch.randn(num_rows, shapes[0].in_features, device="cuda").bfloat16()
            plans = [choose_plan(num_rows, shape) for shape in shapes]
            overlapping, in_turn, theirs = (
                graph_us([partial(layer, x, each, shapes, p, arrivals, overlap) for each in layers])
                for p, overlap in ((plans, True), (plans, False), ([None] * len(shapes), False))
            )
            print(
                f"{model:6} {num_rows:4} {overlapping:12.2f} {in_turn:8.2f} {theirs:8.2f}"
                f" {floor:8.2f}"
            )


def _compile(job: tuple[Plan, int, bool]) -> None:
    """Leaves the kernel in Triton's cache on disk; its code depends on no size."""
    plan, num_rows, is_gated = job
    weight = torch.zeros(plan.block_n * 4, 4096, device="cuda", dtype=torch.bfloat16)
    x = torch.zeros(num_rows, 4096, device="cuda", dtype=torch.bfloat16)
    gpu.linear(x, weight, gpu.new_arrivals(weight), plan, is_gated=is_gated)
    torch.cuda.synchronize()


def tune(path: Path) -> None:
    jobs = {
        (plan, rows if isinstance(plan, DotProducts) else plan.block_m, shape.is_gated)
        for shape in SHAPES.values()
        for rows in ROW_BUCKETS
        for plan in candidates(rows, shape)
    }
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile, jobs, chunksize=4))
    best: dict[Shape, dict[int, Plan | None]] = {}
    for shape in SHAPES.values():
        weights = copies(shape)
        arrivals = gpu.new_arrivals(weights[0])
        best[shape] = {}
        for rows in ROW_BUCKETS:
            x = torch.randn(rows, shape.in_features, device="cuda", dtype=torch.bfloat16)
            times: dict[Plan | None, float] = {None: each_us(cublas(x, shape), weights)}
            for plan in candidates(rows, shape):
                if is_right(x, weights[0], arrivals, plan, shape):
                    times[plan] = each_us(ours(x, arrivals, plan, shape), weights)
                else:
                    print("wrong:", shape, rows, plan)
            best[shape][rows] = min(times, key=lambda plan: times[plan])
    path.write_text(table_source(best))


def table_source(best: dict[Shape, dict[int, Plan | None]]) -> str:
    lines = [
        '"""The fastest plans on an H200 (SXM, 141 GB), bf16, for the layers of Llama-3.1-8B and',
        "Qwen3-0.6B; from benchmarks/gpu/linear.py --tune. Of plans that take the same time alone,",
        'the one that does better between other kernels (--chain)."""',
        "",
        "from __future__ import annotations",
        "",
        "from octavo_kernels.gpu.linear_plans import DotProducts, Plan, Shape, Streams, Tiles",
        "",
        "# fmt: off",
        "TABLE: dict[Shape, dict[int, Plan | None]] = {",
    ]
    for shape, plans in best.items():
        lines.append(f"    Shape{tuple(shape)}: {{")
        lines += [f"        {rows}: {_positional(plan)}," for rows, plan in plans.items()]
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _positional(plan: Plan | None) -> str:
    return "None" if plan is None else f"{type(plan).__name__}{tuple(vars(plan).values())}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--chain", action="store_true")
    parser.add_argument("--tune", type=Path, metavar="FILE", help="of the table, to write")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.tune:
        tune(arguments.tune)
    elif arguments.chain:
        chain()
    else:
        table()


if __name__ == "__main__":
    main()
