from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    scale: float,
    out: Tensor,
    window: int | None = None,
) -> None:
    for start, end in pairwise(query_start_loc.tolist()):
        q, k, v = (each[start:end].float() for each in (query, key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if window is not None:
            places = torch.arange(end - start, device=query.device)
            is_far = (places[:, None] - places).abs() > window
            scores = scores.masked_fill(is_far, float("-inf"))
        weights = scores.softmax(dim=-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
