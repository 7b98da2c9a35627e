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
splat, add, mul, fma, to_bf16, sum_lanes = (
    simd.splat,
    simd.add,
    simd.mul,
    simd.fma,
    simd.to_bf16,
    simd.sum_lanes,
)
read_f32, read_i64, atomic_next = simd.read_f32, simd.read_i64, simd.atomic_next


@functools.cache
def _kernel(bf16: int, has_residual: int) -> int:
    size = 2 if bf16 else 4

    def kernel(arguments: Any) -> None:  # pragma: no cover - compiled
        source = read_i64(arguments + 8)
        residual = read_i64(arguments + 16)
        weight = read_i64(arguments + 24)
        out = read_i64(arguments + 32)
        total_out = read_i64(arguments + 40)
        num_rows = read_i64(arguments + 48)
        width = read_i64(arguments + 56)
        grain = read_i64(arguments + 64)
        eps = read_f32(arguments + 72)
        while True:
            begin = atomic_next(arguments) * grain
            if begin >= num_rows:
                break
            for row in range(begin, min(begin + grain, num_rows)):
                place = row * width * size
                squares = splat(0.0)
                for d in range(0, width * size, 16 * size):
                    value = (
                        load_bf16(source + place + d) if size == 2 else load_f32(source + place + d)
                    )
                    if has_residual:
                        if size == 2:
                            value = to_bf16(add(value, load_bf16(residual + place + d)))
                            store_bf16(total_out + place + d, value)
                        else:
                            value = add(value, load_f32(residual + place + d))
                            store_f32(total_out + place + d, value)
                    squares = fma(value, value, squares)
                inverse = splat(1.0 / math.sqrt(sum_lanes(squares) / width + eps))
                summed = total_out if has_residual else source
                for d in range(0, width * size, 16 * size):
                    if size == 2:
                        # Rounded before the weight, as the model was trained.
                        value = to_bf16(mul(load_bf16(summed + place + d), inverse))
                        store_bf16(out + place + d, mul(value, load_bf16(weight + d)))
                    else:
                        value = mul(load_f32(summed + place + d), inverse)
                        store_f32(out + place + d, mul(value, load_f32(weight + d)))

    return compile_kernel(kernel)


def _run(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out: Tensor,
    total: Tensor | None,
) -> None:
    width = x.shape[-1]
    num_rows = x.numel() // width
    grain, num_tasks = rows_per_task(num_rows, width)
    address = _kernel(int(x.dtype == torch.bfloat16), int(residual is not None))
    arguments = array(
        "q",
        (
            0,
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            0 if total is None else total.data_ptr(),
            num_rows,
            width,
            grain,
            float_bits(eps),
        ),
    )
    launch(address, arguments, num_tasks)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    _run(x, None, weight, eps, out, None)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, total = torch.empty_like(x), torch.empty_like(x)
    _run(x, residual, weight, eps, out, total)
    return out, total
