from __future__ import annotations

import pytest
import torch

from octavo_kernels import linear, linear_gelu, pack_linear_weight, use_cpu_backend
from octavo_kernels.activation import GeluForm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 5, 33])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_linear_matches_float64(
    generator: torch.Generator, num_tokens: int, dtype: torch.dtype, has_bias: bool, choice: str
) -> None:
    weight = (torch.randn(72, 176, generator=generator) * 0.1).to(dtype)
    bias = torch.randn(72, generator=generator).to(dtype) if has_bias else None
    x = torch.randn(num_tokens, 176, generator=generator).to(dtype)
    with use_cpu_backend(choice):
        packed = pack_linear_weight(weight)
        actual = linear(x, packed, bias)
    expected = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    assert actual.dtype == dtype
    assert (packed.in_features, packed.out_features, packed.dtype) == (176, 72, dtype)
    # fp32: 176 products of size ~0.1. bf16: one rounding of the result, 2^-9 of its size.
    bound = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("form", ["exact", "tanh"])
@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_linear_gelu_matches_float64(
    generator: torch.Generator, dtype: torch.dtype, form: GeluForm, choice: str
) -> None:
    weight = (torch.randn(72, 176, generator=generator) * 0.1).to(dtype)
    bias = torch.randn(72, generator=generator).to(dtype)
    x = torch.randn(5, 176, generator=generator).to(dtype)
    with use_cpu_backend(choice):
        actual = linear_gelu(x, pack_linear_weight(weight), bias, form)
    sums = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    expected = torch.nn.functional.gelu(sums, approximate="tanh" if form == "tanh" else "none")
    # bf16: the reference rounds twice, before and after.
    bound = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(actual.double(), expected, atol=bound, rtol=bound)


def test_leading_dimensions_and_strided_input(generator: torch.Generator) -> None:
    weight = torch.randn(32, 64, generator=generator)
    x = torch.randn(3, 4, 128, generator=generator)[..., 32:96]
    torch.testing.assert_close(
        linear(x, pack_linear_weight(weight)), x @ weight.T, atol=1e-4, rtol=1e-5
    )


def test_float64_weight_is_kept_as_it_is(generator: torch.Generator) -> None:
    weight = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    packed = pack_linear_weight(weight)
    assert not packed.is_prepacked
    assert packed.data is weight
