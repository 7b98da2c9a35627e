"""Encoder attention against its reference, and the reference against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo_kernels import encoder_attention, use_cpu_backend
from octavo_kernels.reference import encoder_attention as reference

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# fp32: sums of some hundred products of size ~1 in another order. bf16: torch's own attention
# rounds the weights too, the compiled one the result only.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}


def starts_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def random_qkv(
    lengths: list[int], num_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of a fused projection, as a model has them."""
    generator = torch.Generator().manual_seed(sum(lengths))
    fused = torch.randn(sum(lengths), 3 * num_heads, head_dim, generator=generator).to(dtype)
    return fused[:, :num_heads], fused[:, num_heads : 2 * num_heads], fused[:, 2 * num_heads :]


def check(
    lengths: list[int],
    num_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    window: int | None = None,
) -> None:
    query, key, value = random_qkv(lengths, num_heads, head_dim, dtype)
    starts, scale = starts_of(lengths), head_dim**-0.5
    expected = torch.empty(query.shape, dtype=dtype)
    reference.encoder_attention(query, key, value, starts, scale=scale, window=window, out=expected)
    actual = encoder_attention(
        query, key, value, starts, max_query_len=max(lengths), scale=scale, window=window
    )
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize(
    "lengths",
    [[1], [1, 1, 2], [16, 17, 15], [96, 97], [256], [257, 3], [300, 5, 530], [7] * 20],
    ids=str,
)
def test_ragged_batch_matches_reference(
    backend: str, lengths: list[int], dtype: torch.dtype
) -> None:
    check(lengths, 3, 32, dtype)


@DTYPES
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 64), (2, 16), (3, 24), (1, 160)])
def test_head_shapes_match_reference(
    backend: str, num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    check([70, 1, 13], num_heads, head_dim, dtype)


@DTYPES
@pytest.mark.parametrize("window", [0, 1, 64, 255, 600])
def test_windows_match_reference(backend: str, window: int, dtype: torch.dtype) -> None:
    check([1, 65, 256, 2, 257, 600], 2, 32, dtype, window)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=6))
def test_any_lengths_match_reference(backend: str, lengths: list[int]) -> None:
    check(lengths, 2, 32, torch.float32)


def test_sequences_do_not_see_each_other(backend: str) -> None:
    query, key, value = random_qkv([5, 40, 3], 2, 32)
    together = encoder_attention(
        query, key, value, starts_of([5, 40, 3]), max_query_len=40, scale=0.2
    )
    alone = encoder_attention(
        query[5:45], key[5:45], value[5:45], starts_of([40]), max_query_len=40, scale=0.2
    )
    torch.testing.assert_close(together[5:45], alone, atol=1e-6, rtol=1e-6)


def test_huge_scores_stay_finite(backend: str) -> None:
    query, key, value = random_qkv([40, 300], 1, 16)
    result = encoder_attention(
        query * 1e4, key, value, starts_of([40, 300]), max_query_len=300, scale=1.0
    )
    assert result.isfinite().all()
    assert result.abs().max() <= value.abs().max() + 1e-5


def test_no_tokens_give_none(backend: str) -> None:
    empty = torch.empty(0, 2, 32)
    result = encoder_attention(empty, empty, empty, starts_of([]), max_query_len=0, scale=1.0)
    assert result.shape == (0, 2, 32)


def test_result_goes_into_out(backend: str) -> None:
    query, key, value = random_qkv([9], 2, 32)
    out = torch.empty(9, 2, 32)
    result = encoder_attention(
        query, key, value, starts_of([9]), max_query_len=9, scale=0.2, out=out
    )
    assert result is out
    fresh = encoder_attention(query, key, value, starts_of([9]), max_query_len=9, scale=0.2)
    assert torch.equal(out, fresh)


def test_a_window_hides_what_is_farther_away(backend: str) -> None:
    query, key, value = random_qkv([9, 5], 2, 32)
    changed = value.clone()
    changed[4] += 1

    before, after = (
        encoder_attention(query, key, each, starts_of([9, 5]), max_query_len=9, scale=0.2, window=2)
        for each in (value.contiguous(), changed)
    )

    assert (before != after).any(dim=(1, 2)).tolist() == [2 <= row <= 6 for row in range(14)]


def test_reference_agrees_with_torch() -> None:
    query, key, value = random_qkv([33], 2, 32)
    with use_cpu_backend("reference"):
        actual = encoder_attention(
            query, key, value, starts_of([33]), max_query_len=33, scale=32**-0.5
        )
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    expected = F.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(actual, expected[0].transpose(0, 1), atol=1e-6, rtol=1e-5)
