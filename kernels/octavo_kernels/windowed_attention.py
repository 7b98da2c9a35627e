"""Encoder attention within a window, from torch operators: a tile of rows sees its own keys alone.

The cost grows with the length of a sequence, not with its square.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 256


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    scale: float,
    window: int,
    out: Tensor,
) -> None:
    places = torch.arange(query.shape[0], device=query.device)
    for start, end in pairwise(query_start_loc.tolist()):
        for first in range(start, end, _TILE):
            rows = slice(first, min(first + _TILE, end))
            keys = slice(max(start, first - window), min(rows.stop + window, end))
            is_near = (places[rows, None] - places[None, keys]).abs() <= window
            q, k, v = (each.transpose(0, 1) for each in (query[rows], key[keys], value[keys]))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=is_near, scale=scale)
            out[rows] = attended.transpose(0, 1)
