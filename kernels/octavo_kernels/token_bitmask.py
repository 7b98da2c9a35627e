"""Forbids tokens: logits that a bit mask does not allow become -inf."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import token_bitmask as reference

_DTYPES = (torch.float32, torch.bfloat16)


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int]) -> None:
    """Sets the logits of forbidden tokens to -inf, in place.

    logits:  [num_rows, vocab_size], float
    bitmask: [len(rows), num_words] int32 on the same device; bit i % 32 of word i // 32 is set
             where token i is allowed; tokens beyond the last word are forbidden
    rows:    the row of logits that each mask is for, each at most once
    """
    if logits.is_cuda and logits.stride(-1) == 1 and bitmask.stride(-1) == 1:
        from octavo_kernels.gpu import token_bitmask as gpu

        gpu.apply_token_bitmask(logits, bitmask, rows)
    elif cpu_backend() is CpuBackend.NUMBA and _fits_numba(logits, bitmask):
        from octavo_kernels.cpu import token_bitmask

        token_bitmask.apply_token_bitmask(logits, bitmask, rows)
    else:
        reference.apply_token_bitmask(logits, bitmask, rows)


def _fits_numba(logits: Tensor, bitmask: Tensor) -> bool:
    return (
        logits.device.type == "cpu"
        and logits.dtype in _DTYPES
        and logits.stride(-1) == 1
        and bitmask.is_contiguous()
    )
