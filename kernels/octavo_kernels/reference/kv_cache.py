from __future__ import annotations

import torch
from torch import Tensor

_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def write_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    block_size = value_cache.shape[2]
    wanted = slot_mapping >= 0
    slots = slot_mapping[wanted]
    block, offset = slots // block_size, slots % block_size
    key_cache[block, :, :, offset] = _as_stored(key[wanted], key_cache.dtype)
    value_cache[block, :, offset] = _as_stored(value[wanted], value_cache.dtype)


def _as_stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Of what fp8 cannot hold, conversion alone may make NaN."""
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(dtype) if dtype is torch.float8_e4m3fn else x
