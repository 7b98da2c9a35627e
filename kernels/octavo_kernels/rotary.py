"""Rotary position embedding, fused with the write to the KV cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.kv_cache import fits_numba
from octavo_kernels.norm import rms_norm
from octavo_kernels.reference import rotary as reference


def rotary_and_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Turn queries in place; write turned keys, and values, to the cache.

    The two halves of a head form the pairs, as in Llama and GPT-NeoX. `key` stays as it is.

    query:        [T, num_heads, head_dim], fp32 or bf16
    key, value:   [T, num_kv_heads, head_dim], same dtype; all three may be slices of a fused qkv
    cos_sin:      [max_position, rotary_dim] fp32: rotary_dim / 2 cosines, then as many sines;
                  elements of a head past rotary_dim do not turn
    positions:    [T] int64
    key_cache, value_cache: see `kv_cache_shapes`, same dtype or `FP8`; changed in place
    slot_mapping: [T] int64; a token with -1 is not written, its query turns all the same
    query_norm, key_norm: [head_dim], both or none: each head goes through `rms_norm` with this
                  weight, and `eps`, before it turns

    Computed in fp32; rounded once, and after a norm where there is one, and to `FP8` at the end.
    """
    if query.is_cuda:
        from octavo_kernels.gpu import rotary as gpu

        gpu.rotary_and_cache(
            query,
            key,
            value,
            cos_sin,
            positions,
            key_cache,
            value_cache,
            slot_mapping,
            query_norm=query_norm,
            key_norm=key_norm,
            eps=eps,
        )
        return
    if query_norm is not None and key_norm is not None:
        query.copy_(rms_norm(query, query_norm, eps))
        key = rms_norm(key, key_norm, eps)
    if cpu_backend() is CpuBackend.NUMBA and _fits_numba(
        query, key, value, cos_sin, key_cache, value_cache
    ):
        from octavo_kernels.cpu import rotary

        rotary.rotary_and_cache(
            query, key, value, cos_sin, positions, key_cache, value_cache, slot_mapping
        )
    else:
        reference.rotary_and_cache(
            query, key, value, cos_sin, positions, key_cache, value_cache, slot_mapping
        )


def _fits_numba(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
) -> bool:
    rotary_dim = cos_sin.shape[1]
    return (
        fits_numba(key, value, key_cache, value_cache)
        and query.dtype == key.dtype
        and query.stride()[1:] == (key.shape[2], 1)
        and cos_sin.dtype == torch.float32
        and cos_sin.is_contiguous()
        and rotary_dim % 2 == 0
        and rotary_dim >= 32
    )
