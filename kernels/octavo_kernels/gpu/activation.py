"""The gated activation: one pass over gates and values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _silu_and_mul(gate_up_ptr, out_ptr, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < size
    gate = tl.load(gate_up_ptr + row * stride + lanes, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + size + lanes, mask=inside, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    activated = (gate * (1 / (1 + tl.exp(-gate)))).to(dtype).to(tl.float32)
    tl.store(out_ptr + row * size + lanes, (activated * up).to(dtype), mask=inside)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `octavo_kernels.activation.silu_and_mul`."""
    size = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * size)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    out = torch.empty((*gate_up.shape[:-1], size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() > 0:
        grid = (len(rows), triton.cdiv(size, _BLOCK))
        _silu_and_mul[grid](rows, out, rows.stride(0), size, BLOCK=_BLOCK, num_warps=4)
    return out
