"""Attention of an encoder: every token of a sequence sees all of that sequence, no cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.reference import encoder_attention as reference

_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    max_query_len: int,
    scale: float,
    window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Bidirectional attention within each sequence of a ragged batch; softmax in fp32.

    Source: Vaswani et al. 2017, §3.2.1; FlashAttention, §3.1 (running softmax).

    query, key, value: [T, num_heads, head_dim], fp32 or bf16 (on a GPU fp16 too); may be slices of
                       a fused qkv
    query_start_loc:   [S + 1] int32 on the same device: sequence i has the rows from entry i up to
                       entry i + 1; no sequence is empty
    max_query_len:     tokens of the longest sequence, or more
    scale:             of the scores, before the softmax; positive
    window:            a token sees those at most so many positions away; None: the whole sequence.
                       Where it matters torch's operators do it, a tile of rows at a time
    returns            [T, num_heads, head_dim]: `out` if given, else a new tensor
    """
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if query.shape[0] == 0:
        return out
    if window is not None and window < max_query_len - 1:
        if cpu_backend() is CpuBackend.REFERENCE:
            reference.encoder_attention(
                query, key, value, query_start_loc, scale=scale, window=window, out=out
            )
        else:
            from octavo_kernels import windowed_attention as tiled

            tiled.encoder_attention(
                query, key, value, query_start_loc, scale=scale, window=window, out=out
            )
    elif query.device.type == "cuda" and _fits_gpu(query, key, value, out):
        from octavo_kernels.gpu import encoder_attention as gpu

        gpu.encoder_attention(
            query, key, value, query_start_loc, max_query_len=max_query_len, scale=scale, out=out
        )
    elif query.device.type != "cpu" or cpu_backend() is CpuBackend.REFERENCE:
        reference.encoder_attention(query, key, value, query_start_loc, scale=scale, out=out)
    elif cpu_backend() is CpuBackend.NUMBA and _fits_numba(query, key, value, out):
        from octavo_kernels.cpu import encoder_attention as compiled

        compiled.encoder_attention(
            query, key, value, query_start_loc, max_query_len=max_query_len, scale=scale, out=out
        )
    else:
        from octavo_kernels.cpu import torch_encoder_attention as composed

        composed.encoder_attention(query, key, value, query_start_loc, scale=scale, out=out)
    return out


def _fits_numba(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> bool:
    head_dim = query.shape[2]
    return (
        query.dtype in _DTYPES
        and head_dim % 16 == 0
        and head_dim <= 128
        and query.stride(1) == head_dim
        and _are_alike(query, key, value, out)
    )


def _fits_gpu(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> bool:
    fits = query.dtype in _GPU_DTYPES and query.shape[2] <= 256
    return fits and _are_alike(query, key, value, out)


def _are_alike(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> bool:
    """One dtype and one layout, in which heads and their elements lie side by side."""
    return (
        query.dtype == key.dtype == value.dtype == out.dtype
        and query.stride() == key.stride() == value.stride()
        and query.stride(2) == 1
        and out.stride()[1:] == (query.shape[2], 1)
    )
