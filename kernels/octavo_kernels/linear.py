"""Linear layers whose weight is prepared once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import linear as reference


@dataclass(frozen=True)
class PackedWeight:
    """A weight ready for `linear`; when is_prepacked, only `linear` can read `data`."""

    data: Tensor
    in_features: int
    out_features: int
    dtype: torch.dtype
    is_prepacked: bool


def pack_linear_weight(weight: Tensor) -> PackedWeight:
    """Prepare `weight` ([out_features, in_features], fp32 or bf16) for many products.

    The result is a copy of the same size where oneDNN is available, else `weight` itself. Drop the
    original to keep memory flat; an embedding table that is tied to the output layer has to stay
    beside the copy.
    """
    out_features, in_features = weight.shape
    is_prepacked = False
    if weight.device.type == "cpu" and cpu_backend() is not CpuBackend.REFERENCE:
        from octavo_kernels.cpu import linear as cpu

        is_prepacked = cpu.can_prepack(weight.dtype)
    data = cpu.prepack(weight.detach()) if is_prepacked else weight
    return PackedWeight(data, in_features, out_features, weight.dtype, is_prepacked)


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, accumulated in fp32.

    x: [..., in_features] of the weight's dtype; bias: [out_features]; returns [..., out_features],
    new.
    """
    if packed.is_prepacked:
        from octavo_kernels.cpu import linear as cpu

        return cpu.linear(x, packed.data, bias)
    return reference.linear(x, packed.data, bias)
