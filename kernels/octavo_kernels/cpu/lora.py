"""Low-rank additions to few rows: one pass over A, then one over B, for each row.

A task is one part of one tile. Tiles of many rows are left to `torch_lora`: blocked products read
the matrices less often.
"""

from __future__ import annotations

import functools
from array import array
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.cpu import simd
from octavo_kernels.cpu.compile import compile_kernel
from octavo_kernels.cpu.team import launch
from octavo_kernels.lora import CPU_DTYPES, FEW_ROWS, LoRARows, LoRASlots

_MAX_RANK = 512
_LANES = 16

load, store, splat, fma, sum_lanes = simd.load, simd.store, simd.splat, simd.fma, simd.sum_lanes
read_f32, write_f32, read_i32, read_i64 = (
    simd.read_f32,
    simd.write_f32,
    simd.read_i32,
    simd.read_i64,
)
stack_f32, atomic_next = simd.stack_f32, simd.atomic_next


def can_read(slots: LoRASlots) -> bool:
    """Whether the vectors fit."""
    return (
        slots.a.device.type == "cpu"
        and slots.a.dtype in CPU_DTYPES
        and slots.a.shape[2] <= _MAX_RANK
        and slots.a.shape[3] % _LANES == 0
        and all(part.size % _LANES == 0 for part in slots.parts)
    )


@functools.cache
def _kernel(x_bf16: int, bf16: int) -> int:
    x_size = 2 if x_bf16 else 4
    size = 2 if bf16 else 4
    few_rows, stack_size = FEW_ROWS, _MAX_RANK

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        y = read_i64(arguments + 8)
        y_row = read_i64(arguments + 16) * x_size
        x = read_i64(arguments + 24)
        order = read_i64(arguments + 32)
        tiles = read_i64(arguments + 40)
        num_tiles = read_i64(arguments + 48)
        layout = read_i64(arguments + 56)
        num_parts = read_i64(layout)
        width = read_i64(layout + 8)
        a = read_i64(layout + 16)
        b = read_i64(layout + 24)
        ranks = read_i64(layout + 32)
        rank_slot = read_i64(layout + 40) * 4
        max_rank = read_i64(layout + 48)
        b_rank = read_i64(layout + 56) * size
        a_row = width * size
        shrunk = stack_f32(stack_size)
        while True:
            task = atomic_next(arguments)
            if task >= num_tiles * num_parts:
                break
            tile = tiles + task // num_parts * 12
            index = task % num_parts
            slot = read_i32(tile)
            begin = read_i32(tile + 4)
            end = read_i32(tile + 8)
            rank = read_i32(ranks + slot * rank_slot + index * 4)
            if rank == 0 or end - begin > few_rows:
                continue
            part = layout + 64 + index * 24
            columns = read_i64(part + 8)
            a_first = a + (slot * num_parts + index) * max_rank * a_row
            b_first = b + slot * max_rank * b_rank + read_i64(part + 16) * size
            for place in range(begin, end):
                row = read_i32(order + place * 4)
                source = x + row * width * x_size
                # Four sums side by side, where one alone would wait for the adder.
                for r in range(0, rank - 3, 4):
                    a_0 = a_first + r * a_row
                    a_1, a_2, a_3 = a_0 + a_row, a_0 + 2 * a_row, a_0 + 3 * a_row
                    s_0, s_1, s_2, s_3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
                    for d in range(0, width, 16):
                        value = load(x_bf16, source + d * x_size)
                        s_0 = fma(value, load(bf16, a_0 + d * size), s_0)
                        s_1 = fma(value, load(bf16, a_1 + d * size), s_1)
                        s_2 = fma(value, load(bf16, a_2 + d * size), s_2)
                        s_3 = fma(value, load(bf16, a_3 + d * size), s_3)
                    write_f32(shrunk + r * 4, sum_lanes(s_0))
                    write_f32(shrunk + r * 4 + 4, sum_lanes(s_1))
                    write_f32(shrunk + r * 4 + 8, sum_lanes(s_2))
                    write_f32(shrunk + r * 4 + 12, sum_lanes(s_3))
                for r in range(rank - rank % 4, rank):
                    s_0 = splat(0.0)
                    for d in range(0, width, 16):
                        value = load(x_bf16, source + d * x_size)
                        s_0 = fma(value, load(bf16, a_first + r * a_row + d * size), s_0)
                    write_f32(shrunk + r * 4, sum_lanes(s_0))
                target = y + row * y_row + read_i64(part) * x_size
                for c in range(0, columns - 63, 64):
                    out = target + c * x_size
                    s_0, s_1 = load(x_bf16, out), load(x_bf16, out + 16 * x_size)
                    s_2, s_3 = load(x_bf16, out + 32 * x_size), load(x_bf16, out + 48 * x_size)
                    at = b_first + c * size
                    for r in range(rank):
                        factor = splat(read_f32(shrunk + r * 4))
                        s_0 = fma(factor, load(bf16, at), s_0)
                        s_1 = fma(factor, load(bf16, at + 16 * size), s_1)
                        s_2 = fma(factor, load(bf16, at + 32 * size), s_2)
                        s_3 = fma(factor, load(bf16, at + 48 * size), s_3)
                        at += b_rank
                    store(x_bf16, out, s_0)
                    store(x_bf16, out + 16 * x_size, s_1)
                    store(x_bf16, out + 32 * x_size, s_2)
                    store(x_bf16, out + 48 * x_size, s_3)
                for c in range(columns - columns % 64, columns, 16):
                    out = target + c * x_size
                    s_0 = load(x_bf16, out)
                    for r in range(rank):
                        at = b_first + r * b_rank + c * size
                        s_0 = fma(splat(read_f32(shrunk + r * 4)), load(bf16, at), s_0)
                    store(x_bf16, out, s_0)

    return compile_kernel(kernel)


def layout_of(slots: LoRASlots) -> array[int]:
    """What the kernel knows of a layer: the same in all steps, as its tensors stay in place."""
    _, num_parts, max_rank, width = slots.a.shape
    layout = array("q", (num_parts, width, slots.a.data_ptr(), slots.b.data_ptr()))
    ranks = slots.ranks
    layout.extend((ranks.data_ptr(), ranks.stride(0), max_rank, slots.b.shape[2]))
    for index, part in enumerate(slots.parts):
        layout.extend((part.first, part.size, slots.columns(index).start))
    return layout


def add_lora(y: Tensor, x: Tensor, layout: array[int], dtype: torch.dtype, rows: LoRARows) -> None:
    """See `octavo_kernels.lora.add_lora`; leaves out `rows.large_tiles`. dtype: of the matrices."""
    num_tiles = len(rows.tiles_host)
    arguments = array(
        "q",
        (
            0,
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            rows.order.data_ptr(),
            rows.tiles.data_ptr(),
            num_tiles,
            layout.buffer_info()[0],
        ),
    )
    address = _kernel(int(x.dtype == torch.bfloat16), int(dtype == torch.bfloat16))
    launch(address, arguments, num_tiles * layout[0])
