from __future__ import annotations

import torch
from torch import Tensor

from octavo_kernels.reference.kv_cache import write_kv_cache


def apply_rotary(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    """x: [T, heads, head_dim]; the first cos_sin.shape[1] elements of each head turn."""
    rotary_dim = cos_sin.shape[1]
    cos, sin = cos_sin[positions][:, None, :].chunk(2, dim=-1)
    turned = x[..., :rotary_dim].float()
    left, right = turned.chunk(2, dim=-1)
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), x[..., rotary_dim:]), dim=-1)


def rotary_and_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
) -> None:
    query.copy_(apply_rotary(query, cos_sin, positions))
    write_kv_cache(
        apply_rotary(key, cos_sin, positions), value, key_cache, value_cache, slot_mapping
    )
