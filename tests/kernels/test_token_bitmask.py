"""Token bit masks against the reference, which is checked by hand first."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels import apply_token_bitmask
from octavo_kernels.reference import token_bitmask as reference

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)


def words(allowed: torch.Tensor) -> torch.Tensor:
    """[n, tokens] bool as [n, ceil(tokens / 32)] int32."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32))
    weights = 2 ** torch.arange(32, dtype=torch.int64)
    return (padded.view(len(padded), -1, 32) * weights).sum(-1).to(torch.int32)


def test_reference_keeps_the_tokens_whose_bit_is_set() -> None:
    logits = torch.arange(40.0).repeat(2, 1)
    mask = torch.tensor([[(1 << 3) | -(1 << 31), 0b1]], dtype=torch.int32)
    reference.apply_token_bitmask(logits, mask, [1])
    assert torch.equal(logits[0], torch.arange(40.0))
    assert logits[1].isfinite().nonzero().flatten().tolist() == [3, 31, 32]
    assert logits[1, [3, 31, 32]].tolist() == [3.0, 31.0, 32.0]


@DTYPES
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 352, 49152])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_equals_the_reference(
    generator: torch.Generator,
    backend: str,
    vocab_size: int,
    density: float,
    dtype: torch.dtype,
) -> None:
    logits = torch.randn(5, vocab_size, generator=generator).to(dtype)
    allowed = torch.rand(3, vocab_size, generator=generator) < density
    allowed[1] = True  # a mask that forbids nothing
    rows = [4, 0, 2]
    expected = logits.clone()
    reference.apply_token_bitmask(expected, words(allowed), rows)
    apply_token_bitmask(logits, words(allowed), rows)
    assert torch.equal(logits, expected)
    assert torch.equal(logits[[4, 0, 2]].isfinite(), allowed)


@DTYPES
def test_tokens_beyond_the_mask_are_forbidden(backend: str, dtype: torch.dtype) -> None:
    logits = torch.zeros(1, 100, dtype=dtype)
    apply_token_bitmask(logits, torch.full((1, 2), -1, dtype=torch.int32), [0])
    assert logits[0].isfinite().tolist() == [True] * 64 + [False] * 36


def test_rows_of_a_strided_view(backend: str) -> None:
    whole = torch.zeros(4, 128)
    apply_token_bitmask(whole[1:3, :64], torch.zeros(1, 2, dtype=torch.int32), [1])
    assert whole.isinf().nonzero().tolist() == [[2, i] for i in range(64)]
