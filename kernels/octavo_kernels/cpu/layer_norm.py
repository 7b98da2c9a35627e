from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch
from torch import Tensor

from octavo_kernels.cpu import simd
from octavo_kernels.cpu.compile import compile_kernel
from octavo_kernels.cpu.rows import rows_per_task
from octavo_kernels.cpu.team import float_bits, launch

load_f32, load_bf16, store_f32, store_bf16 = (
    simd.load_f32,
    simd.load_bf16,
    simd.store_f32,
    simd.store_bf16,
)
splat, add, sub, mul, fma, to_bf16, sum_lanes = (
    simd.splat,
    simd.add,
    simd.sub,
    simd.mul,
    simd.fma,
    simd.to_bf16,
    simd.sum_lanes,
)
read_f32, read_i64, atomic_next = simd.read_f32, simd.read_i64, simd.atomic_next
stack_f32 = simd.stack_f32

MAX_WIDTH = 8192  # a row stays on the stack between its passes


@functools.cache
def _kernel(bf16: int, has_residual: int) -> int:
    size = 2 if bf16 else 4
    max_width = MAX_WIDTH

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        source = read_i64(arguments + 8)
        residual = read_i64(arguments + 16)
        weight = read_i64(arguments + 24)
        bias = read_i64(arguments + 32)
        out = read_i64(arguments + 40)
        num_rows = read_i64(arguments + 48)
        width = read_i64(arguments + 56)
        grain = read_i64(arguments + 64)
        eps = read_f32(arguments + 72)
        total = stack_f32(max_width)
        while True:
            begin = atomic_next(arguments) * grain
            if begin >= num_rows:
                break
            for row in range(begin, min(begin + grain, num_rows)):
                place = row * width * size
                sums = splat(0.0)
                for d in range(0, width, 16):
                    at = place + d * size
                    value = load_bf16(source + at) if size == 2 else load_f32(source + at)
                    if has_residual:
                        if size == 2:
                            value = to_bf16(add(value, load_bf16(residual + at)))
                        else:
                            value = add(value, load_f32(residual + at))
                    store_f32(total + 4 * d, value)
                    sums = add(sums, value)
                mean = splat(sum_lanes(sums) / width)
                squares = splat(0.0)
                for d in range(0, width, 16):
                    centred = sub(load_f32(total + 4 * d), mean)
                    store_f32(total + 4 * d, centred)
                    squares = fma(centred, centred, squares)
                inverse = splat(1.0 / math.sqrt(sum_lanes(squares) / width + eps))
                for d in range(0, width, 16):
                    at = d * size
                    normed = mul(load_f32(total + 4 * d), inverse)
                    if size == 2:
                        normed = fma(normed, load_bf16(weight + at), load_bf16(bias + at))
                        store_bf16(out + place + at, normed)
                    else:
                        normed = fma(normed, load_f32(weight + at), load_f32(bias + at))
                        store_f32(out + place + at, normed)

    return compile_kernel(kernel)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> Tensor:
    width = x.shape[-1]
    num_rows = x.numel() // width
    grain, num_tasks = rows_per_task(num_rows, width)
    out = torch.empty_like(x)
    arguments = array(
        "q",
        (
            0,
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            grain,
            float_bits(eps),
        ),
    )
    address = _kernel(int(x.dtype == torch.bfloat16), int(residual is not None))
    launch(address, arguments, num_tasks)
    return out
