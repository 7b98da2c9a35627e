"""Conversion to fp8 (e4m3: four bits of exponent, three of mantissa)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

FP8_MAX = tl.constexpr(torch.finfo(torch.float8_e4m3fn).max)


@triton.jit
def store_rounded(ptrs, x, mask):
    """Stores `x` in the dtype of `ptrs`; what fp8 cannot hold becomes its largest, not NaN."""
    dtype = ptrs.dtype.element_ty
    if dtype.is_fp8():
        x = tl.clamp(x.to(tl.float32), -FP8_MAX, FP8_MAX)
    tl.store(ptrs, x.to(dtype), mask=mask)
