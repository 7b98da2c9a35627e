from __future__ import annotations

import torch
from torch import Tensor

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
    out = torch.empty_like(query) if out is None else out
    num_kv_heads, head_dim, block_size = key_cache.shape[1:]
    group = query.shape[1] // num_kv_heads
    for sequence in range(metadata.num_sequences):
        start, end = metadata.query_start_loc_host[sequence : sequence + 2].tolist()
        context = int(metadata.context_lens_host[sequence])
        num_blocks = -(-context // block_size)
        blocks = metadata.block_tables[sequence, :num_blocks].long()
        # [num_blocks, heads, dim, block_size] and [num_blocks, heads, block_size, dim] to [heads,
        # context, dim]
        keys = (
            key_cache[blocks]
            .permute(1, 0, 3, 2)
            .reshape(num_kv_heads, -1, head_dim)[:, :context]
            .float()
        )
        values = (
            value_cache[blocks]
            .transpose(0, 1)
            .reshape(num_kv_heads, -1, head_dim)[:, :context]
            .float()
        )
        keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)
        scores = torch.einsum("qhd,hkd->hqk", query[start:end].float(), keys) * scale
        if soft_cap > 0:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        # [q, k], zero for the token itself and negative for what came before
        distance = torch.arange(context, device=query.device) - metadata.positions[start:end, None]
        if alibi_slopes is not None:
            scores = scores + alibi_slopes[:, None, None] * distance
        visible = distance <= 0
        if sliding_window > 0:
            visible &= distance > -sliding_window
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[start:end] = torch.einsum("hqk,hkd->qhd", weights, values).to(out.dtype)
    return out
