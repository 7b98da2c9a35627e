"""Root-mean-square and layer normalization, alone and together with the residual sum before."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import norm as reference

_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension: statistics in fp32, rounded before the weight.

    x: [..., hidden], weight: [hidden], same dtype; returns a new tensor like x.
    """
    if x.is_cuda:
        from octavo_kernels.gpu import norm as gpu

        return gpu.rms_norm(x, weight, eps)
    if cpu_backend() is CpuBackend.NUMBA and _fits_numba(x, weight):
        from octavo_kernels.cpu import norm

        return norm.rms_norm(x.contiguous(), weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual), both new; the sum is rounded to x's dtype first.

    x, residual: [..., hidden], weight: [hidden], same dtype.
    """
    if x.is_cuda:
        from octavo_kernels.gpu import norm as gpu

        return gpu.add_rms_norm(x, residual, weight, eps)
    if cpu_backend() is CpuBackend.NUMBA and _fits_numba(x, weight) and residual.dtype == x.dtype:
        from octavo_kernels.cpu import norm

        return norm.add_rms_norm(x.contiguous(), residual.contiguous(), weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """(x - mean) / std * weight + bias over the last dimension, of x + residual where there is one:
    the sum is rounded to x's dtype, the rest is done in fp32.

    x, residual: [..., hidden], weight, bias: [hidden], same dtype; returns a new tensor like x.
    Source: Ba et al. 2016.
    """
    if x.is_cuda:
        from octavo_kernels.gpu import norm as gpu

        return gpu.layer_norm(x, weight, bias, eps, residual)
    fits = _fits_numba(x, weight) and _fits_numba(x if residual is None else residual, bias)
    if cpu_backend() is CpuBackend.NUMBA and fits:
        from octavo_kernels.cpu import layer_norm as cpu

        if x.shape[-1] <= cpu.MAX_WIDTH:
            dense = None if residual is None else residual.contiguous()
            return cpu.layer_norm(x.contiguous(), weight, bias, eps, dense)
    return reference.layer_norm(x, weight, bias, eps, residual)


def _fits_numba(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _DTYPES
        and x.dtype == weight.dtype
        and weight.is_contiguous()
        and x.shape[-1] % 16 == 0
    )
