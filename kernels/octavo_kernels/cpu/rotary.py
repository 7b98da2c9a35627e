from __future__ import annotations

import functools
from array import array
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.cpu import simd
from octavo_kernels.cpu.compile import compile_kernel
from octavo_kernels.cpu.rows import rows_per_task
from octavo_kernels.cpu.team import launch

load_f32, load_bf16, store_f32, store_bf16 = (
    simd.load_f32,
    simd.load_bf16,
    simd.store_f32,
    simd.store_bf16,
)
sub, mul, fma, add = simd.sub, simd.mul, simd.fma, simd.add
read_f32, write_f32, read_i16, write_i16 = (
    simd.read_f32,
    simd.write_f32,
    simd.read_i16,
    simd.write_i16,
)
read_i64, atomic_next, stack_f32 = simd.read_i64, simd.atomic_next, simd.stack_f32


@functools.cache
def _kernel(bf16: int, head_dim: int, rotary_dim: int) -> int:
    """rotary_dim 0 writes keys as they are and leaves the queries alone."""
    dim, half = head_dim, rotary_dim // 2
    size = 2 if bf16 else 4

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        query = read_i64(arguments + 8)
        key = read_i64(arguments + 16)
        value = read_i64(arguments + 24)
        key_cache = read_i64(arguments + 32)
        value_cache = read_i64(arguments + 40)
        cos_sin = read_i64(arguments + 48)
        positions = read_i64(arguments + 56)
        slots = read_i64(arguments + 64)
        num_tokens = read_i64(arguments + 72)
        num_heads = read_i64(arguments + 80)
        num_kv_heads = read_i64(arguments + 88)
        query_stride = read_i64(arguments + 96)
        key_stride = read_i64(arguments + 104)
        value_stride = read_i64(arguments + 112)
        block_size = read_i64(arguments + 120)
        grain = read_i64(arguments + 128)
        before = stack_f32(dim)
        after = stack_f32(dim)
        while True:
            begin = atomic_next(arguments) * grain
            if begin >= num_tokens:
                break
            for token in range(begin, min(begin + grain, num_tokens)):
                slot = read_i64(slots + 8 * token)
                cos = cos_sin
                if half > 0:
                    cos = cos_sin + 8 * half * read_i64(positions + 8 * token)
                sin = cos + 4 * half
                # Queries first, then the keys of the tokens that are to be written.
                for head in range(num_heads + (num_kv_heads if slot >= 0 else 0)):
                    is_query = head < num_heads
                    if is_query:
                        source = query + (token * query_stride + head * dim) * size
                    else:
                        source = key + (token * key_stride + (head - num_heads) * dim) * size
                    for d in range(0, dim, 16):
                        x = load_bf16(source + 2 * d) if size == 2 else load_f32(source + 4 * d)
                        store_f32(before + 4 * d, x)
                        store_f32(after + 4 * d, x)
                    for step in range(0, half, 16):
                        # The last vector may overlap the one before: `before` is not overwritten.
                        d = 4 * min(step, half - 16)
                        left, right = load_f32(before + d), load_f32(before + d + 4 * half)
                        c, s = load_f32(cos + d), load_f32(sin + d)
                        store_f32(after + d, sub(mul(left, c), mul(right, s)))
                        store_f32(after + d + 4 * half, add(mul(right, c), mul(left, s)))
                    if is_query:
                        for d in range(0, dim, 16):
                            if size == 2:
                                store_bf16(source + 2 * d, load_f32(after + 4 * d))
                            else:
                                store_f32(source + 4 * d, load_f32(after + 4 * d))
                    else:
                        place = (slot // block_size) * num_kv_heads + head - num_heads
                        target = key_cache + (place * dim * block_size + slot % block_size) * size
                        if size == 2:
                            for d in range(0, dim, 16):
                                store_bf16(before + 2 * d, load_f32(after + 4 * d))
                            for d in range(dim):
                                write_i16(target + 2 * d * block_size, read_i16(before + 2 * d))
                        else:
                            for d in range(dim):
                                write_f32(target + 4 * d * block_size, read_f32(after + 4 * d))
                if slot >= 0:
                    for head in range(num_kv_heads):
                        source = value + (token * value_stride + head * dim) * size
                        place = (
                            (slot // block_size) * num_kv_heads + head
                        ) * block_size + slot % block_size
                        target = value_cache + place * dim * size
                        for d in range(0, dim, 16):
                            if size == 2:
                                store_bf16(target + 2 * d, load_bf16(source + 2 * d))
                            else:
                                store_f32(target + 4 * d, load_f32(source + 4 * d))

    return compile_kernel(kernel)


def _run(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor | None,
    positions: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    num_tokens, num_kv_heads, head_dim = key.shape
    num_heads = 0 if query is None else query.shape[1]
    grain, num_tasks = rows_per_task(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    rotary_dim = 0 if cos_sin is None else cos_sin.shape[1]
    arguments = array(
        "q",
        (
            0,
            0 if query is None else query.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            0 if cos_sin is None else cos_sin.data_ptr(),
            0 if positions is None else positions.data_ptr(),
            slot_mapping.data_ptr(),
            num_tokens,
            num_heads,
            num_kv_heads,
            0 if query is None else query.stride(0),
            key.stride(0),
            value.stride(0),
            value_cache.shape[2],
            grain,
        ),
    )
    launch(_kernel(int(key.dtype == torch.bfloat16), head_dim, rotary_dim), arguments, num_tasks)


def rotary_and_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    _run(query, key, value, cos_sin, positions, key_cache, value_cache, slot_mapping)


def write_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    _run(None, key, value, None, None, key_cache, value_cache, slot_mapping)
