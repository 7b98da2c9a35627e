"""Encoder attention in numba: a task is a tile of rows of one head of one sequence.

A task turns the keys of its head into columns, a panel at a time, and runs its rows over them:

    panel    [head_dim, up to _PANEL keys]      keys are vector lanes of the first product
    queries  [_ROWS, head_dim], scaled          a few rows at a time stay in registers
    scores   [a few rows, _PANEL]               of these; the left factor of the second product
    output   [_ROWS, head_dim] fp32, and the largest score and sum of each row so far
"""

from __future__ import annotations

import functools
from array import array
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.cpu import simd
from octavo_kernels.cpu.compile import compile_kernel
from octavo_kernels.cpu.team import float_bits, launch

_ROWS = 96  # a multiple of every register tile's rows
_PANEL = 256
# Not a power of two, so that rows do not compete for the same cache sets.
_STRIDE = _PANEL + 16
_NEGATIVE_INFINITY = float("-inf")

load_f32, load_bf16, store_f32, store_bf16 = (
    simd.load_f32,
    simd.load_bf16,
    simd.store_f32,
    simd.store_bf16,
)
splat, add, sub, mul, fma, maximum, exp = (
    simd.splat,
    simd.add,
    simd.sub,
    simd.mul,
    simd.fma,
    simd.maximum,
    simd.exp,
)
sum_lanes, max_lanes, read_f32, write_f32 = (
    simd.sum_lanes,
    simd.max_lanes,
    simd.read_f32,
    simd.write_f32,
)
read_i32, read_i64, atomic_next = simd.read_i32, simd.read_i64, simd.atomic_next
stack_f32, tile_matmul = simd.stack_f32, simd.tile_matmul


@functools.cache
def _kernel(head_dim: int, bf16: int) -> int:
    dim = head_dim
    value_vecs = dim // 16
    # Output tile and a row of values fill the vector registers.
    rows_max = {1: 12, 2: 8, 3: 8, 4: 6, 5: 4, 6: 4}.get(value_vecs, 3)
    key_vecs = 2 if rows_max > 6 else 4
    step = 16 * key_vecs
    size = 2 if bf16 else 4
    rows_per_task, panel_keys, stride = _ROWS, _PANEL, _STRIDE
    stack_panel = dim * _STRIDE
    stack_scores = rows_max * _STRIDE
    stack_rows = _ROWS * dim
    stack_sums = _ROWS * 16

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        query = read_i64(arguments + 8)
        key = read_i64(arguments + 16)
        value = read_i64(arguments + 24)
        out = read_i64(arguments + 32)
        starts = read_i64(arguments + 40)
        num_sequences = read_i64(arguments + 48)
        num_heads = read_i64(arguments + 56)
        num_tiles = read_i64(arguments + 64)
        token_bytes = read_i64(arguments + 72) * size
        out_bytes = read_i64(arguments + 80) * size
        scale = splat(read_f32(arguments + 88))
        # head_dim again, unknown to the compiler: unrolled products take it a minute.
        depth = read_i64(arguments + 96)
        panel = stack_f32(stack_panel)
        scores = stack_f32(stack_scores)
        queries = stack_f32(stack_rows)
        output = stack_f32(stack_rows)
        sums = stack_f32(stack_sums)
        maxima = stack_f32(stack_sums)
        while True:
            task = atomic_next(arguments)
            if task >= num_sequences * num_heads * num_tiles:
                break
            sequence = task // (num_heads * num_tiles)
            head = task // num_tiles % num_heads
            first = task % num_tiles * rows_per_task
            start = read_i32(starts + 4 * sequence)
            length = read_i32(starts + 4 * sequence + 4) - start
            num_rows = min(length - first, rows_per_task)
            if num_rows <= 0:
                continue
            head_place = start * token_bytes + head * dim * size
            for row in range(num_rows):
                source = query + head_place + (first + row) * token_bytes
                for d in range(0, dim, 16):
                    loaded = load_bf16(source + 2 * d) if size == 2 else load_f32(source + 4 * d)
                    store_f32(queries + 4 * (row * dim + d), mul(loaded, scale))
                write_f32(maxima + 4 * row, _NEGATIVE_INFINITY)
                store_f32(sums + 64 * row, splat(0.0))
            for begin in range(0, length, panel_keys):
                num_keys = min(panel_keys, length - begin)
                padded = (num_keys + step - 1) // step * step
                for j in range(num_keys):
                    source = key + head_place + (begin + j) * token_bytes
                    if size == 2:
                        for d in range(0, dim, 16):
                            store_f32(scores + 4 * d, load_bf16(source + 2 * d))
                        source = scores
                    for d in range(depth):
                        write_f32(panel + 4 * (d * stride + j), read_f32(source + 4 * d))
                values = value + head_place + begin * token_bytes
                row = 0
                while row < num_rows:
                    rows = min(num_rows - row, rows_max)
                    for j in range(0, padded, step):
                        tile_matmul(
                            rows_max, key_vecs, 16, 0, 0,
                            rows, queries + 4 * row * dim, dim, panel + 4 * j, stride,
                            depth, scores + 4 * j, stride, 0,
                        )  # fmt: skip
                    for r in range(rows):
                        scored = scores + 4 * r * stride
                        # Past the last key the panel holds whatever was there before.
                        for j in range(num_keys, padded):
                            write_f32(scored + 4 * j, _NEGATIVE_INFINITY)
                        before = read_f32(maxima + 4 * (row + r))
                        most = splat(before)
                        for j in range(0, padded, 16):
                            most = maximum(most, load_f32(scored + 4 * j))
                        now = max_lanes(most)
                        shift = splat(now)
                        total = splat(0.0)
                        for j in range(0, padded, 16):
                            weight = exp(sub(load_f32(scored + 4 * j), shift))
                            store_f32(scored + 4 * j, weight)
                            total = add(total, weight)
                        if begin > 0:
                            shrink = exp(sub(splat(before), shift))
                            total = fma(load_f32(sums + 64 * (row + r)), shrink, total)
                            for d in range(0, dim, 16):
                                place = output + 4 * ((row + r) * dim + d)
                                store_f32(place, mul(load_f32(place), shrink))
                        store_f32(sums + 64 * (row + r), total)
                        write_f32(maxima + 4 * (row + r), now)
                    tile_matmul(
                        rows_max, value_vecs, 16, 0, bf16,
                        rows, scores, stride, values, token_bytes // size,
                        num_keys, output + 4 * row * dim, dim, begin,
                    )  # fmt: skip
                    row += rows
            for row in range(num_rows):
                target = out + (start + first + row) * out_bytes + head * dim * size
                norm = splat(1.0 / sum_lanes(load_f32(sums + 64 * row)))
                for d in range(0, dim, 16):
                    scaled = mul(load_f32(output + 4 * (row * dim + d)), norm)
                    if size == 2:
                        store_bf16(target + 2 * d, scaled)
                    else:
                        store_f32(target + 4 * d, scaled)

    return compile_kernel(kernel)


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    max_query_len: int,
    scale: float,
    out: Tensor,
) -> None:
    _, num_heads, head_dim = query.shape
    num_sequences = query_start_loc.shape[0] - 1
    num_tiles = -(-max_query_len // _ROWS)
    arguments = array(
        "q",
        (
            0,
            query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            out.data_ptr(),
            query_start_loc.data_ptr(),
            num_sequences,
            num_heads,
            num_tiles,
            query.stride(0),
            out.stride(0),
            float_bits(scale),
            head_dim,
        ),
    )
    address = _kernel(head_dim, int(query.dtype == torch.bfloat16))
    launch(address, arguments, num_sequences * num_heads * num_tiles)
