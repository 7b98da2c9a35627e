"""Attention of a ragged step: one launch for its decodes, one for its prefill chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.gpu.decode_attention import decode_attention
from octavo_kernels.gpu.prefill_attention import prefill_attention
from octavo_kernels.gpu.prefill_hopper import fits_hopper, prefill_hopper
from octavo_kernels.metadata import AttentionMetadata


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
    """See `octavo_kernels.paged_attention`.

    No host array is read, so it can be captured in a CUDA graph and replayed with other tensors in
    `metadata`, `counts` among them, if that has not been used before the capture: the first layer
    computes what all of them share. Sequences of context_len 0 then read nothing.
    """
    if query.stride(2) != 1:
        query = query.contiguous()
    if out is None:
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_decodes = metadata.num_decodes
    if num_decodes > 0:
        decode_attention(
            query[:num_decodes],
            key_cache,
            value_cache,
            metadata,
            out[:num_decodes],
            scale=scale,
            sliding_window=sliding_window,
            soft_cap=soft_cap,
            alibi_slopes=alibi_slopes,
        )
    if metadata.num_chunks > 0:
        is_plain = sliding_window == 0 and soft_cap == 0 and alibi_slopes is None
        chunks = (
            query,
            key_cache,
            value_cache,
            metadata.query_start_loc,
            metadata.context_lens,
            metadata.block_tables,
            metadata.counts,
            out,
        )
        num_chunks, num_tokens = metadata.num_chunks, metadata.num_chunk_tokens
        if is_plain and fits_hopper(query, key_cache, value_cache):
            prefill_hopper(*chunks, num_chunks=num_chunks, num_tokens=num_tokens, scale=scale)
        else:
            prefill_attention(
                *chunks,
                num_chunks=num_chunks,
                num_tokens=num_tokens,
                scale=scale,
                sliding_window=sliding_window,
                soft_cap=soft_cap,
                alibi_slopes=alibi_slopes,
            )
    return out
