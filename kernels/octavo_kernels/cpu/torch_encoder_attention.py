"""Encoder attention from torch operators, for machines without numba and for odd head sizes.

Sequences of one length go together; padding others to it would cost more than another call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    scale: float,
    out: Tensor,
) -> None:
    lengths = query_start_loc.diff()
    starts = query_start_loc[:-1]
    for length in set(lengths.tolist()):
        # [members, length], the rows of each
        rows = starts[lengths == length, None].long() + torch.arange(length)
        q, k, v = (each[rows].transpose(1, 2) for each in (query, key, value))
        out[rows] = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
