from __future__ import annotations

from torch import Tensor


def write_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    block_size = value_cache.shape[2]
    wanted = slot_mapping >= 0
    slots = slot_mapping[wanted]
    block, offset = slots // block_size, slots % block_size
    key_cache[block, :, :, offset] = key[wanted]
    value_cache[block, :, offset] = value[wanted]
