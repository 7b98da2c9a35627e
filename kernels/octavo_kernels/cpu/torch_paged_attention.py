"""Paged attention from torch operators, for machines without numba: gather, dense products.

Decodes go in groups of similar context length, so that padding stays small; prefill chunks go one
by one, since padding two chunks to one shape costs more than the second call.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_kernels.metadata import AttentionMetadata

_GROUP = 8


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    out: Tensor,
) -> Tensor:
    block_size = value_cache.shape[2]
    keys, values = key_cache.permute(0, 3, 1, 2), value_cache.transpose(1, 2)
    for members, context in _groups(metadata):
        rows, lengths = metadata.query_start_loc_host[members], metadata.context_lens_host[members]
        place = np.minimum(np.arange(context), lengths[:, None] - 1)
        # Places past a context repeat its last token: masked below, and never a slot that was not
        # written.
        blocks = np.take_along_axis(
            metadata.block_tables_host[members], place // block_size, axis=1
        )
        block, offset = torch.from_numpy(blocks).long(), torch.from_numpy(place % block_size)
        num_tokens = int(metadata.query_lens_host[members[0]])
        first = int(rows[0])
        picked = torch.from_numpy(rows).long()
        q = (
            query[picked].unsqueeze(2)
            if num_tokens == 1
            else query[first : first + num_tokens].transpose(0, 1)[None]
        )
        k, v = keys[block, offset].transpose(1, 2), values[block, offset].transpose(1, 2)
        limits = torch.from_numpy(lengths)[:, None] - num_tokens + torch.arange(num_tokens)
        visible = torch.arange(context) <= limits[:, None, :, None]
        if num_tokens == context:
            result = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )
        else:
            result = F.scaled_dot_product_attention(
                q, k, v, attn_mask=visible, scale=scale, enable_gqa=True
            )
        if num_tokens == 1:
            out[picked] = result.squeeze(2)
        else:
            out[first : first + num_tokens] = result[0].transpose(0, 1)
    return out


def _groups(
    metadata: AttentionMetadata,
) -> list[tuple[np.ndarray[tuple[int], np.dtype[np.intp]], int]]:
    """Sequences that share one dense call, with the longest context among them."""
    contexts = metadata.context_lens_host
    single = np.flatnonzero(metadata.query_lens_host == 1)
    single = single[np.argsort(contexts[single], kind="stable")]
    groups = [single[i : i + _GROUP] for i in range(0, len(single), _GROUP)]
    groups += [np.array([each]) for each in np.flatnonzero(metadata.query_lens_host > 1)]
    return [(members, int(contexts[members].max())) for members in groups]
