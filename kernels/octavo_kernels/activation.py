"""Gated activations of MLPs: SiLU as in Llama, GELU as in Gemma."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import activation as reference

GeluForm = Literal["tanh", "exact"]
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


def gelu_and_mul(gate_up: Tensor, form: GeluForm = "tanh") -> Tensor:
    """gelu(gate) * up, the activation rounded to the dtype before the product.

    gate_up: [..., 2 * intermediate], the gates first; returns [..., intermediate], new. form: by
    the tanh approximation (Hendrycks and Gimpel 2016) or by the error function.
    """
    if gate_up.is_cuda:
        from octavo_kernels.gpu import activation as gpu

        return gpu.gelu_and_mul(gate_up, form)
    return reference.gelu_and_mul(gate_up, form)
