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
splat, add, sub, mul, div, exp, to_bf16 = (
    simd.splat, simd.add, simd.sub, simd.mul, simd.div, simd.exp, simd.to_bf16,
)  # fmt: skip
read_i64, atomic_next = simd.read_i64, simd.atomic_next


@functools.cache
def _kernel(bf16: int) -> int:
    size = 2 if bf16 else 4

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        source = read_i64(arguments + 8)
        out = read_i64(arguments + 16)
        num_rows = read_i64(arguments + 24)
        width = read_i64(arguments + 32) * size
        grain = read_i64(arguments + 40)
        one, zero = splat(1.0), splat(0.0)
        while True:
            begin = atomic_next(arguments) * grain
            if begin >= num_rows:
                break
            for row in range(begin, min(begin + grain, num_rows)):
                gates, ups, target = (
                    source + 2 * row * width,
                    source + (2 * row + 1) * width,
                    out + row * width,
                )
                for d in range(0, width, 16 * size):
                    gate = load_bf16(gates + d) if size == 2 else load_f32(gates + d)
                    silu = div(gate, add(one, exp(sub(zero, gate))))
                    if size == 2:
                        store_bf16(target + d, mul(to_bf16(silu), load_bf16(ups + d)))
                    else:
                        store_f32(target + d, mul(silu, load_f32(ups + d)))

    return compile_kernel(kernel)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    num_rows = out.numel() // width
    grain, num_tasks = rows_per_task(num_rows, width)
    arguments = array("q", (0, gate_up.data_ptr(), out.data_ptr(), num_rows, width, grain))
    launch(_kernel(int(gate_up.dtype == torch.bfloat16)), arguments, num_tasks)
    return out
