"""Paged attention in numba, decode and prefill alike.

Every work item walks the blocks of its own context once, so nothing is gathered or padded.
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
from octavo_kernels.metadata import AttentionMetadata

# Keys scored at a time: the scores of a row tile stay in the L1 and L2 caches however long the
# context is.
_CHUNK = 512
# Not a power of two, so that rows of scores do not compete for the same cache sets.
_SCORE_STRIDE = _CHUNK + 16
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


def _max_rows(head_dim: int) -> int:
    """Rows whose output tile still fits the vector registers beside a row of values."""
    return {64: 6, 80: 5, 96: 4, 128: 3}.get(head_dim, 3)


@functools.cache
def _kernel(head_dim: int, block_size: int, bf16: int) -> int:
    dim, block = head_dim, block_size
    width = min(16, block)
    key_vecs = block // width
    # Past 128 an output row does not fit, so the head is done in slices.
    value_vecs = dim // 16 if dim <= 128 else 8
    slices = dim // (16 * value_vecs)
    slice_dim = 16 * value_vecs
    rows_max = _max_rows(dim)
    size = 2 if bf16 else 4
    stack_query = rows_max * dim
    stack_scores = rows_max * _SCORE_STRIDE
    stack_rows = rows_max * 16
    chunk, score_stride = _CHUNK, _SCORE_STRIDE

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        query = read_i64(arguments + 8)
        key_cache = read_i64(arguments + 16)
        value_cache = read_i64(arguments + 24)
        out = read_i64(arguments + 32)
        starts = read_i64(arguments + 40)
        contexts = read_i64(arguments + 48)
        tables = read_i64(arguments + 56)
        table_stride = read_i64(arguments + 64)
        items = read_i64(arguments + 72)
        num_items = read_i64(arguments + 80)
        num_kv_heads = read_i64(arguments + 88)
        group = read_i64(arguments + 96)
        query_stride = read_i64(arguments + 104)
        out_stride = read_i64(arguments + 112)
        scale = splat(read_f32(arguments + 120))
        head_bytes = dim * block * size
        queries = stack_f32(stack_query)
        scores = stack_f32(stack_scores)
        output = stack_f32(stack_query)
        sums = stack_f32(stack_rows)
        maxima = stack_f32(stack_rows)
        while True:
            task = atomic_next(arguments)
            if task >= num_items * num_kv_heads:
                break
            item = items + 12 * (task // num_kv_heads)
            kv_head = task % num_kv_heads
            sequence = read_i32(item)
            first = read_i32(item + 4)
            num_rows = read_i32(item + 8) * group
            start = read_i32(starts + 4 * sequence)
            context = read_i32(contexts + 4 * sequence)
            prior = context - (read_i32(starts + 4 * sequence + 4) - start)
            table = tables + 4 * sequence * table_stride
            row = 0
            while row < num_rows:
                rows = min(num_rows - row, rows_max)
                for r in range(rows):
                    token = start + first + (row + r) // group
                    head = kv_head * group + (row + r) % group
                    source = query + (token * query_stride + head * dim) * size
                    for d in range(0, dim, 16):
                        if size == 2:
                            store_f32(
                                queries + 4 * (r * dim + d), mul(load_bf16(source + 2 * d), scale)
                            )
                        else:
                            store_f32(
                                queries + 4 * (r * dim + d), mul(load_f32(source + 4 * d), scale)
                            )
                    write_f32(maxima + 4 * r, _NEGATIVE_INFINITY)
                    store_f32(sums + 64 * r, splat(0.0))
                limit = prior + first + (row + rows - 1) // group + 1
                for begin in range(0, limit, chunk):
                    num_keys = min(chunk, limit - begin)
                    for offset in range(0, num_keys, block):
                        place = read_i32(table + 4 * ((begin + offset) // block))
                        place = place * num_kv_heads + kv_head
                        keys = key_cache + place * head_bytes
                        score = scores + 4 * offset
                        tile_matmul(
                            rows_max, key_vecs, width, 1, bf16,
                            rows, queries, dim, keys, block, dim, score, score_stride, 0,
                        )  # fmt: skip
                    padded = (num_keys + 15) // 16 * 16
                    for r in range(rows):
                        scored = scores + 4 * r * score_stride
                        # Causal, and no slot past the context counts: whatever it holds was
                        # overwritten here.
                        seen = prior + first + (row + r) // group + 1 - begin
                        seen = min(max(seen, 0), num_keys)
                        for j in range(seen, padded):
                            write_f32(scored + 4 * j, _NEGATIVE_INFINITY)
                        before = read_f32(maxima + 4 * r)
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
                            total = fma(load_f32(sums + 64 * r), shrink, total)
                            for d in range(0, dim, 16):
                                place = output + 4 * (r * dim + d)
                                store_f32(place, mul(load_f32(place), shrink))
                        store_f32(sums + 64 * r, total)
                        write_f32(maxima + 4 * r, now)
                    for offset in range(0, num_keys, block):
                        place = read_i32(table + 4 * ((begin + offset) // block))
                        place = place * num_kv_heads + kv_head
                        values = value_cache + place * head_bytes
                        count = min(block, num_keys - offset)
                        for part in range(slices):
                            part_values = values + part * slice_dim * size
                            part_output = output + 4 * part * slice_dim
                            tile_matmul(
                                rows_max, value_vecs, 16, 0, bf16,
                                rows, scores + 4 * offset, score_stride, part_values, dim,
                                count, part_output, dim, begin + offset,
                            )  # fmt: skip
                for r in range(rows):
                    token = start + first + (row + r) // group
                    head = kv_head * group + (row + r) % group
                    target = out + (token * out_stride + head * dim) * size
                    norm = splat(1.0 / sum_lanes(load_f32(sums + 64 * r)))
                    for d in range(0, dim, 16):
                        value = mul(load_f32(output + 4 * (r * dim + d)), norm)
                        if size == 2:
                            store_bf16(target + 2 * d, value)
                        else:
                            store_f32(target + 4 * d, value)
                row += rows

    return compile_kernel(kernel)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    out: Tensor,
) -> Tensor:
    num_kv_heads, head_dim, block_size = key_cache.shape[1:]
    address = _kernel(head_dim, block_size, int(query.dtype == torch.bfloat16))
    items, tables = metadata.work_items, metadata.block_tables
    num_items = items.shape[0]
    arguments = array(
        "q",
        (
            0,
            query.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            out.data_ptr(),
            metadata.query_start_loc.data_ptr(),
            metadata.context_lens.data_ptr(),
            tables.data_ptr(),
            tables.stride(0),
            items.data_ptr(),
            num_items,
            num_kv_heads,
            query.shape[1] // num_kv_heads,
            query.stride(0),
            out.stride(0),
            float_bits(scale),
        ),
    )
    launch(address, arguments, num_items * num_kv_heads)
    return out
