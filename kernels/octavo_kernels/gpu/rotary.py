"""Norms of heads, rotary embedding and the write to the KV cache as one launch.

A program takes one token and a few heads, all of them query, key or value heads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.fp8 import store_rounded
from octavo_kernels.gpu.kv_cache import copy_heads, slot_of
from octavo_kernels.gpu.overlap import can_overlap

_FEW_TOKENS = 256


@triton.jit
def _heads_of(
    x_ptr,
    stride,
    heads,
    inside,
    norm_ptr,
    eps,
    cos,
    sin,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    REST: tl.constexpr,
    REST_LANES: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """The two turned parts of some heads, [heads, LANES] each, and the part that stays."""
    lanes = tl.arange(0, LANES)[None, :]
    rest_lanes = tl.arange(0, REST_LANES)[None, :]
    mask = inside & (lanes < HALF)
    rest_mask = inside & (rest_lanes < REST)
    head_ptr = x_ptr + heads * stride
    dtype = x_ptr.dtype.element_ty
    left = tl.load(head_ptr + lanes, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(head_ptr + HALF + lanes, mask=mask, other=0.0).to(tl.float32)
    rest = tl.load(head_ptr + 2 * HALF + rest_lanes, mask=rest_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(left * left + right * right, 1) + tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        left_weight = tl.load(norm_ptr + lanes, mask=lanes < HALF, other=0.0).to(tl.float32)
        right_weight = tl.load(norm_ptr + HALF + lanes, mask=lanes < HALF, other=0.0)
        rest_weight = tl.load(norm_ptr + 2 * HALF + rest_lanes, mask=rest_lanes < REST, other=0.0)
        left = ((left * scale).to(dtype).to(tl.float32) * left_weight).to(dtype).to(tl.float32)
        right = (right * scale).to(dtype).to(tl.float32) * right_weight.to(tl.float32)
        right = right.to(dtype).to(tl.float32)
        rest = (rest * scale).to(dtype).to(tl.float32) * rest_weight.to(tl.float32)
    turned_left = (left * cos - right * sin).to(dtype)
    turned_right = (right * cos + left * sin).to(dtype)
    return turned_left, turned_right, rest.to(dtype)


@triton.jit
def _rotary_and_cache(
    query_ptr,
    key_ptr,
    value_ptr,
    cos_sin_ptr,
    positions_ptr,
    key_cache_ptr,
    value_cache_ptr,
    slots_ptr,
    query_norm_ptr,
    key_norm_ptr,
    eps,
    query_stride,
    query_head_stride,
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
    num_kv_heads,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    REST: tl.constexpr,
    REST_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HEADS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    query_groups = tl.cdiv(num_heads, HEADS)
    kv_groups = tl.cdiv(num_kv_heads, HEADS)
    lanes = tl.arange(0, LANES)[None, :]
    rest_lanes = tl.arange(0, REST_LANES)[None, :]
    position = tl.load(positions_ptr + token)
    angles_ptr = cos_sin_ptr + position * (2 * HALF) + lanes
    cos = tl.load(angles_ptr, mask=lanes < HALF, other=0.0)
    sin = tl.load(angles_ptr + HALF, mask=lanes < HALF, other=0.0)
    if group < query_groups:
        heads = group * HEADS + tl.arange(0, HEADS)[:, None]
        inside = heads < num_heads
        token_ptr = query_ptr + token * query_stride
        left, right, rest = _heads_of(
            token_ptr, query_head_stride, heads, inside, query_norm_ptr, eps, cos, sin,
            HEAD_DIM, HALF, LANES, REST, REST_LANES, HAS_NORM,
        )  # fmt: skip
        out_ptr = token_ptr + heads * query_head_stride
        mask = inside & (lanes < HALF)
        tl.store(out_ptr + lanes, left, mask=mask)
        tl.store(out_ptr + HALF + lanes, right, mask=mask)
        tl.store(out_ptr + 2 * HALF + rest_lanes, rest, mask=inside & (rest_lanes < REST))
    else:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            if group < query_groups + kv_groups:
                heads = (group - query_groups) * HEADS + tl.arange(0, HEADS)[:, None]
                inside = heads < num_kv_heads
                left, right, rest = _heads_of(
                    key_ptr + token * key_stride, key_head_stride, heads, inside, key_norm_ptr,
                    eps, cos, sin, HEAD_DIM, HALF, LANES, REST, REST_LANES, HAS_NORM,
                )  # fmt: skip
                slot_ptr = slot_of(
                    key_cache_ptr, slot, key_block_stride, key_slot_stride, BLOCK_SIZE
                )
                out_ptr = slot_ptr + heads * key_cache_head_stride
                mask = inside & (lanes < HALF)
                store_rounded(out_ptr + lanes * key_dim_stride, left, mask)
                store_rounded(out_ptr + (HALF + lanes) * key_dim_stride, right, mask)
                rest_ptr = out_ptr + (2 * HALF + rest_lanes) * key_dim_stride
                store_rounded(rest_ptr, rest, inside & (rest_lanes < REST))
            else:
                first = (group - query_groups - kv_groups) * HEADS
                copy_heads(
                    value_ptr + token * value_stride, value_head_stride,
                    slot_of(
                        value_cache_ptr, slot, value_block_stride, value_slot_stride, BLOCK_SIZE
                    ),
                    value_cache_head_stride, 1, first + tl.arange(0, HEADS)[:, None], num_kv_heads,
                    HEAD_DIM, VALUE_LANES,
                )  # fmt: skip


def rotary_and_cache(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """See `octavo_kernels.rotary.rotary_and_cache`. The last dimension of all is dense."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = key.shape[1]
    if num_tokens == 0:
        return
    half = cos_sin.shape[1] // 2
    rest = head_dim - 2 * half
    heads, num_warps = _program_shape(num_tokens)
    groups = triton.cdiv(num_heads, heads) + 2 * triton.cdiv(num_kv_heads, heads)
    has_norm = query_norm is not None
    _rotary_and_cache[(num_tokens, groups)](
        query,
        key,
        value,
        cos_sin,
        positions,
        key_cache,
        value_cache,
        slot_mapping,
        query_norm if has_norm else query,
        key_norm if has_norm else key,
        eps,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        *key_cache.stride(),
        *value_cache.stride()[:3],
        num_heads,
        num_kv_heads,
        BLOCK_SIZE=value_cache.shape[2],
        HEAD_DIM=head_dim,
        HALF=half,
        LANES=triton.next_power_of_2(half),
        REST=rest,
        REST_LANES=triton.next_power_of_2(max(rest, 1)),
        VALUE_LANES=triton.next_power_of_2(head_dim),
        HAS_NORM=has_norm,
        HEADS=heads,
        OVERLAP=can_overlap(query.device),
        launch_pdl=can_overlap(query.device),
        num_warps=num_warps,
    )


def _program_shape(num_tokens: int) -> tuple[int, int]:
    """Heads and warps of a program: small ones fill the chip, large ones keep more in flight."""
    return (4, 4) if num_tokens < _FEW_TOKENS else (16, 2)
