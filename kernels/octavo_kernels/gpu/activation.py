"""Activations: gated ones in one pass over gates and values, GELU in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap

_BLOCK = 1024


@triton.jit
def _act_and_mul(
    gate_up_ptr,
    out_ptr,
    stride,
    size,
    ACT: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < size
    gate = tl.load(gate_up_ptr + row * stride + lanes, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + size + lanes, mask=inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if ACT == "silu":
        activated = gate * tl.sigmoid(gate)
    elif ACT == "tanh":
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        activated = gate * tl.sigmoid(2 * inner)  # (1 + tanh(x)) / 2
    else:
        activated = 0.5 * gate * (1 + tl.erf(gate * 0.7071067811865476))
    rounded = activated.to(dtype).to(tl.float32)
    tl.store(out_ptr + row * size + lanes, (rounded * up).to(dtype), mask=inside)


@triton.jit
def _gelu(x_ptr, size, FORM: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    lanes = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < size
    x = tl.load(x_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    if FORM == "tanh":
        # 0.5 * (1 + tanh(y)) is sigmoid(2 * y)
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif x_ptr.dtype.element_ty == tl.float32:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        # Abramowitz and Stegun, 7.1.26: off by 1.5e-7 at most, in a third of the instructions
        z = tl.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * z)
        series = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
        series = t * (0.254829592 + t * (-0.284496736 + series))
        tail = 0.5 * series * tl.exp(-z * z)
        share = tl.where(x >= 0, 1.0 - tail, tail)
    tl.store(x_ptr + lanes, (x * share).to(x_ptr.dtype.element_ty), mask=inside)


def gelu_(x: Tensor, form: str) -> Tensor:
    """`x`, dense, of which every number has become its GELU, rounded once."""
    _gelu[(triton.cdiv(x.numel(), _BLOCK),)](
        x,
        x.numel(),
        FORM=form,
        BLOCK=_BLOCK,
        OVERLAP=can_overlap(x.device),
        launch_pdl=can_overlap(x.device),
        num_warps=4,
    )
    return x


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `octavo_kernels.activation.silu_and_mul`."""
    return _launch(gate_up, "silu")


def gelu_and_mul(gate_up: Tensor, form: str) -> Tensor:
    """See `octavo_kernels.activation.gelu_and_mul`."""
    return _launch(gate_up, form)


def _launch(gate_up: Tensor, activation: str) -> Tensor:
    size = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() > 0:
        grid = (len(rows), triton.cdiv(size, _BLOCK))
        _act_and_mul[grid](
            rows,
            out,
            rows.stride(0),
            size,
            ACT=activation,
            BLOCK=_BLOCK,
            OVERLAP=can_overlap(rows.device),
            launch_pdl=can_overlap(rows.device),
            num_warps=4,
        )
    return out
