"""Gated activations: one pass over gates and values."""

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
