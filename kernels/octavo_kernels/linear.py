"""Linear layers whose weight is prepared once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import gelu

from octavo_kernels.activation import GeluForm, silu_and_mul
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
    # Counters of the GPU kernels, zero between launches; None where these do not read the weight.
    arrivals: Tensor | None = None


def pack_linear_weight(weight: Tensor) -> PackedWeight:
    """Prepare `weight` ([out_features, in_features], fp32 or bf16) for many products.

    On a CPU with oneDNN the result is a copy of the same size, else `weight` itself. Drop the
    original to keep memory flat; an embedding table that is tied to the output layer has to stay
    beside the copy. Products with one packed weight on a GPU must not overlap: keep to a stream.
    """
    out_features, in_features = weight.shape
    if weight.is_cuda:
        from octavo_kernels.gpu import linear as gpu

        arrivals = gpu.new_arrivals(weight) if gpu.can_read(weight) else None
        return PackedWeight(weight, in_features, out_features, weight.dtype, False, arrivals)
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
    output = _few_rows(x, packed, bias=bias)
    return reference.linear(x, packed.data, bias) if output is None else output


def linear_silu_and_mul(x: Tensor, packed: PackedWeight) -> Tensor:
    """silu_and_mul(linear(x, packed)): the weight holds the rows of the gates, then of the others.

    x: [..., in_features]; returns [..., out_features / 2], new.
    """
    output = _few_rows(x, packed, is_gated=True)
    return silu_and_mul(linear(x, packed)) if output is None else output


def linear_gelu(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, form: GeluForm = "exact"
) -> Tensor:
    """gelu(linear(x, packed, bias)), by the error function or by its tanh approximation.

    x: [..., in_features]; returns [..., out_features], new.
    """
    if packed.is_prepacked:
        from octavo_kernels.cpu import linear as cpu

        return cpu.linear_gelu(x, packed.data, bias, form)
    output = _few_rows(x, packed, bias=bias, gelu_form=form)
    if output is not None:
        return output
    return gelu(linear(x, packed, bias), approximate="tanh" if form == "tanh" else "none")


def _few_rows(
    x: Tensor,
    packed: PackedWeight,
    *,
    bias: Tensor | None = None,
    is_gated: bool = False,
    gelu_form: GeluForm | None = None,
) -> Tensor | None:
    """By a GPU kernel of our own; None where there is none for the case, or a slower one."""
    if packed.arrivals is None or x.dtype != packed.dtype or x.data_ptr() % 16:
        return None
    from octavo_kernels.gpu import linear as gpu
    from octavo_kernels.gpu.linear_plans import Shape, choose_plan

    num_columns = packed.out_features // 2 if is_gated else packed.out_features
    num_rows = x.numel() // packed.in_features
    plan = choose_plan(num_rows, Shape(num_columns, packed.in_features, is_gated))
    if plan is None:
        return None
    output = gpu.linear(
        x.reshape(num_rows, packed.in_features).contiguous(),
        packed.data,
        packed.arrivals,
        plan,
        bias=bias,
        is_gated=is_gated,
        gelu=gelu_form,
    )
    return output.view(*x.shape[:-1], num_columns)
