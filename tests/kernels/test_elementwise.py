"""Normalization and activation against their references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo_kernels import add_rms_norm, layer_norm, rms_norm, silu_and_mul
from octavo_kernels.reference import activation as reference_activation
from octavo_kernels.reference import norm as reference_norm


# fp32: a sum over the row in another order, an ulp or two after it. bf16: the same values before
# each rounding, so only one that falls on a boundary may differ, by one last bit (2^-7 of its size
# at most).
def assert_close(actual: Tensor, expected: Tensor) -> None:
    rtol = 2e-6 if expected.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=rtol)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHAPES = pytest.mark.parametrize(
    "shape", [(1, 576), (3, 64), (130, 576), (2, 5, 128), (4, 100), (0, 64)]
)


@DTYPES
@SHAPES
def test_rms_norm_matches_reference(
    generator: torch.Generator, backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(shape, generator=generator).to(dtype) * 3
    weight = torch.rand(shape[-1], generator=generator).to(dtype)
    expected = reference_norm.rms_norm(x, weight, 1e-5)
    assert_close(rms_norm(x, weight, 1e-5), expected)


@DTYPES
@SHAPES
def test_add_rms_norm_matches_reference(
    generator: torch.Generator, backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, residual = torch.randn(2, *shape, generator=generator).to(dtype)
    weight = torch.rand(shape[-1], generator=generator).to(dtype)
    before = residual.clone()
    normed, total = add_rms_norm(x, residual, weight, 1e-5)
    expected, expected_total = reference_norm.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, expected_total)
    assert torch.equal(residual, before)
    assert_close(normed, expected)


@DTYPES
@SHAPES
@pytest.mark.parametrize("has_residual", [False, True], ids=["alone", "after-a-sum"])
def test_layer_norm_matches_reference(
    generator: torch.Generator,
    backend: str,
    shape: tuple[int, ...],
    has_residual: bool,
    dtype: torch.dtype,
) -> None:
    x, other = (torch.randn(2, *shape, generator=generator) * 3 + 1).to(dtype)
    weight, bias = torch.rand(2, shape[-1], generator=generator).to(dtype)
    residual = other if has_residual else None
    expected = reference_norm.layer_norm(x, weight, bias, 1e-5, residual)
    actual = layer_norm(x, weight, bias, 1e-5, residual)
    # The sum with the bias may come close to zero: what it lost is relative to its parts.
    tolerance = 4e-6 if dtype == torch.float32 else 2**-6
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def test_layer_norm_of_a_row_too_wide_for_the_stack(
    backend: str, generator: torch.Generator
) -> None:
    x = torch.randn(2, 8208, generator=generator)
    expected = torch.nn.functional.layer_norm(x, (8208,))
    actual = layer_norm(x, torch.ones(8208), torch.zeros(8208), 1e-5)
    torch.testing.assert_close(actual, expected, atol=4e-6, rtol=4e-6)


def test_layer_norm_of_a_row_far_from_zero(backend: str, generator: torch.Generator) -> None:
    x = torch.randn(4, 64, generator=generator) + 1000
    ones, zeros = torch.ones(64), torch.zeros(64)
    expected = torch.nn.functional.layer_norm(x.double(), (64,)).float()
    torch.testing.assert_close(layer_norm(x, ones, zeros, 1e-5), expected, atol=2e-4, rtol=2e-4)


def test_rms_norm_of_a_strided_view(generator: torch.Generator, backend: str) -> None:
    x = torch.randn(6, 4, 64, generator=generator)[:, 1:3]
    weight = torch.rand(64, generator=generator)
    expected = reference_norm.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, atol=1e-6, rtol=2e-6)


def test_reference_norm_agrees_with_hugging_face(generator: torch.Generator) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    for dtype in (torch.float32, torch.bfloat16):
        norm = llama.LlamaRMSNorm(96, eps=1e-5).to(dtype)
        norm.weight.data.uniform_(0.5, 2, generator=generator)
        x = torch.randn(5, 96, generator=generator).to(dtype)
        assert torch.equal(norm(x), reference_norm.rms_norm(x, norm.weight, 1e-5))


@DTYPES
@pytest.mark.parametrize("shape", [(1, 3072), (65, 96), (2, 3, 64), (4, 50), (0, 64)])
def test_silu_and_mul_matches_reference(
    generator: torch.Generator, backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    gate_up = torch.randn(shape, generator=generator).to(dtype) * 4
    expected = reference_activation.silu_and_mul(gate_up)
    assert_close(silu_and_mul(gate_up), expected)


def test_silu_of_extreme_gates_stays_finite(backend: str) -> None:
    gates = torch.tensor([-1000.0, -100.0, -88.0, -20.0, 0.0, 20.0, 100.0, 1e30]).repeat(2)
    result = silu_and_mul(torch.cat((gates, torch.ones(16)))[None])
    expected = torch.nn.functional.silu(gates.double()).float()[None]
    torch.testing.assert_close(result, expected, atol=1e-30, rtol=1e-6)


def test_nan_is_not_hidden(backend: str) -> None:
    gate_up = torch.ones(1, 64)
    gate_up[0, 5] = float("nan")
    assert silu_and_mul(gate_up).isnan().nonzero().tolist() == [[0, 5]]
    assert rms_norm(gate_up, torch.ones(64), 1e-5).isnan().all()
