"""Token bit masks on the GPU: a program for a few thousand tokens of one masked row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORDS = 128  # of a program


@triton.jit
def _apply(
    logits_ptr, stride, size, bitmask_ptr, bitmask_stride, num_words, rows_ptr, WORDS: tl.constexpr
):
    mask = tl.program_id(0)
    row_ptr = logits_ptr + tl.load(rows_ptr + mask).to(tl.int64) * stride
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    word_ptr = bitmask_ptr + mask.to(tl.int64) * bitmask_stride + words
    word = tl.load(word_ptr, mask=words < num_words, other=0)[:, None]
    bits = tl.arange(0, 32)[None, :]
    tokens = words[:, None] * 32 + bits
    # Whole words are read and written, which is wider than single tokens are.
    values = tl.load(row_ptr + tokens, mask=(tokens < size) & (word != 0), other=0.0).to(tl.float32)
    values = tl.where(((word >> bits) & 1) == 0, -float("inf"), values)
    tl.store(
        row_ptr + tokens,
        values.to(logits_ptr.dtype.element_ty),
        mask=(tokens < size) & (word != -1),
    )


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int]) -> None:
    """See `octavo_kernels.token_bitmask.apply_token_bitmask`."""
    if not rows:
        return
    size = logits.shape[1]
    places = torch.tensor(rows, dtype=torch.int32).to(logits.device, non_blocking=True)
    _apply[(len(rows), triton.cdiv(size, 32 * _WORDS))](
        logits,
        logits.stride(0),
        size,
        bitmask,
        bitmask.stride(0),
        bitmask.shape[1],
        places,
        WORDS=_WORDS,
        num_warps=4,
    )
