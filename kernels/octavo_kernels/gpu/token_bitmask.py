"""Token bit masks on the GPU: a program for a few thousand tokens of one masked row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096


@triton.jit
def _apply(
    logits_ptr, stride, size, bitmask_ptr, bitmask_stride, num_words, rows_ptr, TILE: tl.constexpr
):
    mask = tl.program_id(0)
    row = tl.load(rows_ptr + mask).to(tl.int64)
    tokens = tl.program_id(1) * TILE + tl.arange(0, TILE)
    word_ptr = bitmask_ptr + mask.to(tl.int64) * bitmask_stride + tokens // 32
    word = tl.load(word_ptr, mask=tokens // 32 < num_words, other=0)
    is_forbidden = ((word >> (tokens % 32)) & 1) == 0
    values = tl.full((TILE,), -float("inf"), tl.float32).to(logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * stride + tokens, values, mask=is_forbidden & (tokens < size))


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int]) -> None:
    """See `octavo_kernels.token_bitmask.apply_token_bitmask`."""
    if not rows:
        return
    size = logits.shape[1]
    places = torch.tensor(rows, dtype=torch.int32).to(logits.device, non_blocking=True)
    _apply[(len(rows), triton.cdiv(size, _TILE))](
        logits,
        logits.stride(0),
        size,
        bitmask,
        bitmask.stride(0),
        bitmask.shape[1],
        places,
        TILE=_TILE,
        num_warps=4,
    )
