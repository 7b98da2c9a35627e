"""Linear layers of few rows, which are bound by reading the weight once.

`linear` launches the kernel that a plan names (linear_plans.py). All of them end in the same
epilogue, which saves the launches and the trips through memory of the operations after the product,
and all overlap with their neighbours: a kernel starts while the one before it still runs, asks for
its first weights, which depend on nothing, and only then waits (programmatic dependent launch, CUDA
programming guide). Hence nothing may overwrite a weight on the stream of its use without waiting
for that use.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo_kernels.activation import GeluForm
from octavo_kernels.gpu.linear_plans import SMALLEST_TILE, DotProducts, Plan, Streams, Tiles
from octavo_kernels.gpu.linear_streams import dot_products, streams
from octavo_kernels.gpu.linear_tiles import tiles
from octavo_kernels.gpu.overlap import can_overlap

_ALIGNMENT = 16  # bytes, of the copy engine and of a thread's widest load


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] == 9


def can_read(weight: Tensor) -> bool:
    """Whether the kernels here fit `weight` and its device."""
    return (
        weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and weight.numel() > 0
        and weight.shape[1] * weight.itemsize % _ALIGNMENT == 0
        and weight.data_ptr() % _ALIGNMENT == 0
        and _is_hopper(weight.device)
    )


def new_arrivals(weight: Tensor) -> Tensor:
    """Counters of `linear` for products with `weight`: zeros, which each launch leaves as zeros."""
    count = triton.cdiv(weight.shape[0], SMALLEST_TILE)
    return torch.zeros(count, dtype=torch.int32, device=weight.device)


def linear(
    x: Tensor,
    weight: Tensor,
    arrivals: Tensor,
    plan: Plan,
    *,
    bias: Tensor | None = None,
    is_gated: bool = False,
    gelu: GeluForm | None = None,
    overlap: bool = True,
) -> Tensor:
    """x @ weight.T, then + bias and gelu, or silu(first half) * second half, as `plan` says.

    x: [rows, in_features], contiguous, aligned to 16 bytes, rows as `plan` allows; weight:
    [out_features, in_features], one that `can_read`; arrivals: from `new_arrivals`, for one launch
    at a time; bias: [out_features]. Returns [rows, out_features], where is_gated [rows,
    out_features / 2], new.
    """
    num_rows, in_features = x.shape
    num_columns = weight.shape[0] // 2 if is_gated else weight.shape[0]
    output = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device)
    num_tiles = triton.cdiv(num_columns, plan.block_n)
    overlap = overlap and can_overlap(x.device)
    settings = {
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "GATED": is_gated,
        "HAS_BIAS": bias is not None,
        "GELU": gelu or "",
        "OVERLAP": overlap,
        "num_warps": plan.num_warps,
        "launch_pdl": overlap,
    }
    operands = (weight, output, bias)
    match plan:
        case DotProducts():
            dot_products[(num_tiles,)](
                x, *operands, num_columns, in_features, ROWS=num_rows, **settings
            )
        case Streams():
            streams[(num_tiles,)](
                x,
                *operands,
                num_rows,
                num_columns,
                in_features,
                BLOCK_M=plan.block_m,
                SLICES=plan.slices,
                num_stages=1,  # the kernel itself loads ahead
                **settings,
            )
        case Tiles():
            size = plan.splits * plan.block_m * plan.block_n * (2 if is_gated else 1)
            parts = torch.empty(
                num_tiles * size if plan.splits > 1 else 0, dtype=torch.float32, device=x.device
            )
            tiles[(num_tiles, plan.splits)](
                TensorDescriptor.from_tensor(x, [plan.block_m, plan.block_k]),
                TensorDescriptor.from_tensor(weight, [plan.block_n, plan.block_k]),
                *operands,
                parts,
                arrivals,
                num_rows,
                num_columns,
                in_features,
                BLOCK_M=plan.block_m,
                SPLITS=plan.splits,
                PREFETCH=plan.prefetch,
                num_stages=plan.num_stages,
                **settings,
            )
    return output
