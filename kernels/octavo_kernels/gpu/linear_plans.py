"""Which kernel multiplies a shape of weight by a number of rows, and in which blocks.

The table of linear_h200.py holds what was fastest there (`benchmarks/gpu/linear.py --tune` writes
it); a shape that it lacks goes by the measured one that is nearest in ratio.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
SMALLEST_TILE = 16  # weight rows


@dataclass(frozen=True)
class Tiles:
    """At most block_m rows of x; block_n (>= SMALLEST_TILE) columns of the output a program."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    num_stages: int
    num_warps: int
    prefetch: int = 0  # elements of each weight row, asked for before the kernel before has ended


@dataclass(frozen=True)
class Streams:
    """At most block_m rows of x, 16 of them where a program has fewer than 16 weight rows."""

    block_m: int
    block_n: int
    block_k: int
    slices: int  # a block of in_features is slices * block_k
    num_warps: int


@dataclass(frozen=True)
class DotProducts:
    """One or two rows of x."""

    block_n: int
    block_k: int
    num_warps: int


Plan = Tiles | Streams | DotProducts


class Shape(NamedTuple):
    num_columns: int  # of the output
    in_features: int
    is_gated: bool


@functools.cache
def choose_plan(num_rows: int, shape: Shape) -> Plan | None:
    """None where cuBLAS is faster."""
    from octavo_kernels.gpu.linear_h200 import TABLE

    bucket = next((size for size in ROW_BUCKETS if num_rows <= size), None)
    if bucket is None or num_rows == 0:
        return None
    measured = [other for other in TABLE if other.is_gated == shape.is_gated]
    return TABLE[min(measured, key=lambda other: _distance(shape, other))][bucket]


def _distance(one: Shape, other: Shape) -> float:
    return abs(math.log(one.num_columns / other.num_columns)) + abs(
        math.log(one.in_features / other.in_features)
    )
