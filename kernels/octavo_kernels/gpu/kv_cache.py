"""The write of a step's keys and values to the cache: a program for a token and a few heads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.fp8 import store_rounded
from octavo_kernels.gpu.overlap import can_overlap

_HEADS = 4


@triton.jit
def slot_of(cache_ptr, slot, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr):
    """Where the heads of a token lie in a cache."""
    return cache_ptr + slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * slot_stride


@triton.jit
def copy_heads(
    from_ptr,  # the first head of a token
    from_stride,
    to_ptr,  # its slot
    to_stride,
    to_dim_stride,
    heads,  # [H, 1]
    num_heads,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
):
    """Copies some heads of a token to its slot."""
    dims = tl.arange(0, LANES)[None, :]
    inside = (heads < num_heads) & (dims < HEAD_DIM)
    x = tl.load(from_ptr + heads * from_stride + dims, mask=inside)
    store_rounded(to_ptr + heads * to_stride + dims * to_dim_stride, x, inside)


@triton.jit
def _write(
    key_ptr,
    value_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slots_ptr,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    key_block_stride,
    key_cache_head_stride,
    key_dim_stride,
    key_slot_stride,
    value_block_stride,
    value_cache_head_stride,
    value_slot_stride,
    num_heads,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    if slot >= 0:
        heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
        copy_heads(
            key_ptr + token * key_stride, key_head_stride,
            slot_of(key_cache_ptr, slot, key_block_stride, key_slot_stride, BLOCK_SIZE),
            key_cache_head_stride, key_dim_stride, heads, num_heads, HEAD_DIM, LANES,
        )  # fmt: skip
        copy_heads(
            value_ptr + token * value_stride, value_head_stride,
            slot_of(value_cache_ptr, slot, value_block_stride, value_slot_stride, BLOCK_SIZE),
            value_cache_head_stride, 1, heads, num_heads, HEAD_DIM, LANES,
        )  # fmt: skip


def write_kv_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
) -> None:
    """See `octavo_kernels.kv_cache.write_kv_cache`. The last dimension of all is dense."""
    num_tokens, num_heads, head_dim = key.shape
    if num_tokens == 0:
        return
    _write[(num_tokens, triton.cdiv(num_heads, _HEADS))](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride(),
        *value_cache.stride()[:3],
        num_heads,
        BLOCK_SIZE=value_cache.shape[2],
        HEAD_DIM=head_dim,
        LANES=triton.next_power_of_2(head_dim),
        HEADS=_HEADS,
        OVERLAP=can_overlap(key.device),
        launch_pdl=can_overlap(key.device),
        num_warps=4,
    )
