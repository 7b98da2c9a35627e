"""RMS and layer normalization, with the residual sum before in the same launch: a program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap


@triton.jit
def _rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    x_stride,
    residual_stride,
    size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < size
    x = tl.load(x_ptr + row * x_stride + lanes, mask=inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + lanes, mask=inside, other=0.0)
        total = (x + residual.to(tl.float32)).to(dtype)
        tl.store(total_ptr + row * size + lanes, total, mask=inside)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x) / size + eps)
    normed = (x * scale).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + lanes, (normed * weight).to(dtype), mask=inside)


@triton.jit
def _layer_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    size,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < size
    x = tl.load(x_ptr + row * x_stride + lanes, mask=inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + lanes, mask=inside, other=0.0)
        x = (x + residual.to(tl.float32)).to(dtype).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x) / size, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / size + eps)
    weight = tl.load(weight_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    normed = centred * scale * weight + bias
    tl.store(out_ptr + row * size + lanes, normed.to(dtype), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `octavo_kernels.norm.rms_norm`."""
    rows = _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, out, out, eps)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `octavo_kernels.norm.add_rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    _launch(_rows(x), _rows(residual), weight, out, total, eps)
    return out, total


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> Tensor:
    """See `octavo_kernels.norm.layer_norm`."""
    rows = _rows(x)
    added = rows if residual is None else _rows(residual)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    num_rows, size = rows.shape
    if num_rows == 0:
        return out
    block = triton.next_power_of_2(size)
    _layer_norm[(num_rows,)](
        rows,
        added,
        weight,
        bias,
        out,
        rows.stride(0),
        added.stride(0),
        size,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        OVERLAP=can_overlap(rows.device),
        launch_pdl=can_overlap(rows.device),
        num_warps=min(16, max(1, block // 512)),
    )
    return out


def _rows(x: Tensor) -> Tensor:
    """[num_rows, size], each row dense."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _launch(
    rows: Tensor, residual: Tensor | None, weight: Tensor, out: Tensor, total: Tensor, eps: float
) -> None:
    num_rows, size = rows.shape
    if num_rows == 0:
        return
    block = triton.next_power_of_2(size)
    _rms_norm[(num_rows,)](
        rows,
        rows if residual is None else residual,
        weight,
        out,
        total,
        rows.stride(0),
        0 if residual is None else residual.stride(0),
        size,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        OVERLAP=can_overlap(rows.device),
        launch_pdl=can_overlap(rows.device),
        num_warps=min(16, max(1, block // 512)),
    )
