"""The gated activation of Llama-style MLPs."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import activation as reference

_DTYPES = (torch.float32, torch.bfloat16)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, the activation rounded to the dtype before the product.

    gate_up: [..., 2 * intermediate], the gates first; returns [..., intermediate], new.
    """
    if gate_up.is_cuda:
        from octavo_kernels.gpu import activation as gpu

        return gpu.silu_and_mul(gate_up)
    if (
        cpu_backend() is CpuBackend.NUMBA
        and gate_up.device.type == "cpu"
        and gate_up.dtype in _DTYPES
        and gate_up.shape[-1] % 32 == 0
    ):
        from octavo_kernels.cpu import activation

        return activation.silu_and_mul(gate_up.contiguous())
    return reference.silu_and_mul(gate_up)
