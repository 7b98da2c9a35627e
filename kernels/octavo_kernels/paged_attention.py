"""Attention of a ragged batch over the paged KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.kv_cache import FP8
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.reference import paged_attention as reference

_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    out: Tensor | None = None,
    sliding_window: int = 0,
    soft_cap: float = 0.0,
    alibi_slopes: Tensor | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over its cache, decode and prefill mixed; softmax in fp32.

    Token i of a sequence with q new tokens sees the cache positions up to context_len - q + i; its
    own key and value must be in the cache already. Only slots of the context are read, whatever
    the others hold.
    Source: vLLM paper, §4.1 (paging); FlashAttention, §3.1 (running softmax).

    query:        [T, num_heads, head_dim], fp32 or bf16 (on a GPU fp16 too); may be a slice of a
                  fused qkv
    key_cache:    [num_blocks, num_kv_heads, head_dim, block_size] (`kv_cache_shapes`), same dtype
                  or `FP8`, which is converted to the query's as it is read
    value_cache:  [num_blocks, num_kv_heads, block_size, head_dim], dtype of key_cache
    metadata:     of this step; num_heads is a multiple of num_kv_heads
    scale:        of the scores, before the softmax; positive
    sliding_window: a token sees this many positions, itself among them; 0: all
    soft_cap:     c > 0 turns a score s into c * tanh(s / c); 0: does not
    alibi_slopes: [num_heads] fp32; adds slope * (key position - query position) to each score
    returns       [T, num_heads, head_dim]: `out` if given, else a new tensor
    """
    if query.device.type == "cuda" and _fits_gpu(query, key_cache, value_cache):
        from octavo_kernels.gpu import paged_attention as gpu

        return gpu.paged_attention(
            query, key_cache, value_cache, metadata, scale=scale, out=out,
            sliding_window=sliding_window, soft_cap=soft_cap, alibi_slopes=alibi_slopes,
        )  # fmt: skip
    is_plain = sliding_window == 0 and soft_cap == 0 and alibi_slopes is None
    is_plain &= key_cache.dtype == query.dtype
    if query.device.type != "cpu" or cpu_backend() is CpuBackend.REFERENCE or not is_plain:
        return reference.paged_attention(
            query, key_cache, value_cache, metadata, scale=scale, out=out,
            sliding_window=sliding_window, soft_cap=soft_cap, alibi_slopes=alibi_slopes,
        )  # fmt: skip
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype)
    if query.shape[0] == 0:
        return out
    if cpu_backend() is CpuBackend.NUMBA and _fits_numba(query, key_cache, value_cache, out):
        from octavo_kernels.cpu import paged_attention as compiled

        return compiled.paged_attention(
            query, key_cache, value_cache, metadata, scale=scale, out=out
        )
    from octavo_kernels.cpu import torch_paged_attention as composed

    return composed.paged_attention(query, key_cache, value_cache, metadata, scale=scale, out=out)


def _fits_numba(query: Tensor, key_cache: Tensor, value_cache: Tensor, out: Tensor) -> bool:
    head_dim, block_size = key_cache.shape[2:]
    return (
        query.dtype in _DTYPES
        and query.dtype == key_cache.dtype == value_cache.dtype == out.dtype
        and block_size in (8, 16, 32)
        and ((head_dim % 16 == 0 and head_dim <= 128) or head_dim == 256)
        and query.stride()[1:] == (head_dim, 1)
        and out.stride()[1:] == (head_dim, 1)
        and key_cache.is_contiguous()
        and value_cache.is_contiguous()
    )


def _fits_gpu(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    return (
        query.dtype in _GPU_DTYPES
        and key_cache.dtype == value_cache.dtype
        and key_cache.dtype in (query.dtype, FP8)
        and query.shape[2] <= 256
    )
