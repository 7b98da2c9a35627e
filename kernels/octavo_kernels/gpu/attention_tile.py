"""The inner loop that decode and prefill share: one tile of queries over a range of cached keys.

A tile holds rows of (token, head) whose heads all share one KV head, so each key and value is read
once for all of them. Scores live in the log2 domain: exp2 is one instruction.
Source: FlashAttention-2, §3.1 (running softmax, division at the end).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class TileConfig(NamedTuple):
    """How a kernel is cut: rows of queries, keys per step, warps, steps of keys in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_queries(
    query_ptr,
    tokens,
    heads,
    is_row,
    stride_token,
    stride_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dims = tl.arange(0, BLOCK_D)
    places = tokens.to(tl.int64) * stride_token + heads * stride_head
    mask = is_row[:, None] & (dims[None, :] < HEAD_DIM)
    return tl.load(query_ptr + places[:, None] + dims[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(
    out_ptr,
    rows,
    tokens,
    heads,
    is_row,
    stride_token,
    stride_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dims = tl.arange(0, BLOCK_D)
    places = tokens.to(tl.int64) * stride_token + heads * stride_head
    mask = is_row[:, None] & (dims[None, :] < HEAD_DIM)
    tl.store(
        out_ptr + places[:, None] + dims[None, :], rows.to(out_ptr.dtype.element_ty), mask=mask
    )


@triton.jit
def _as_half(query):
    """Rows [M, D] in fp16, scaled to a largest element of about 1, and those scales, [M]."""
    query = query.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(query), 1), 1e-30)
    unit = tl.exp2(tl.floor(tl.log2(largest)))  # a power of two: nothing is rounded
    return (query / unit[:, None]).to(tl.float16), unit


@triton.jit
def attend(
    output,
    row_max,
    row_sum,
    query,
    query_positions,
    slopes,
    begin,
    end,
    key_ptr,
    value_ptr,
    table_ptr,
    key_stride_block: tl.constexpr,
    key_stride_dim: tl.constexpr,
    key_stride_token: tl.constexpr,
    value_stride_block: tl.constexpr,
    value_stride_token: tl.constexpr,
    value_stride_dim: tl.constexpr,
    scale,
    soft_cap,
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds the keys at positions [begin, end) to the running softmax and returns its new state.

    output, row_max, row_sum: [M, D], [M], [M] fp32; row_max in log2 units
    query, query_positions:   [M, D] in the dtype of the cache, or any for an fp8 cache; [M]
    slopes:                   [M] fp32, read if HAS_SLOPES
    begin:                    a multiple of BLOCK_N
    key_ptr, value_ptr, table_ptr: already at the KV head and at the sequence
    scale:                    of the scores, positive, times log2(e)
    MASKED:                   False promises whole tiles of keys that every row sees
    """
    lanes = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    # Two numbers of fp8 become fp16, which holds them all, in one instruction; bf16 takes four.
    IS_HALVED: tl.constexpr = key_ptr.dtype.element_ty.is_fp8() and query.dtype == tl.bfloat16
    if IS_HALVED:
        query, unit = _as_half(query)
    # Block ids are asked for one step before the keys whose addresses they are.
    positions = begin + lanes
    next_blocks = tl.load(table_ptr + positions // BLOCK_SIZE, mask=positions < end, other=0)
    for start in tl.range(begin, end, BLOCK_N):
        positions = start + lanes
        blocks = next_blocks.to(tl.int64)
        following = positions + BLOCK_N
        next_blocks = tl.load(table_ptr + following // BLOCK_SIZE, mask=following < end, other=0)
        if MASKED:
            inside = positions < end
        slots = positions % BLOCK_SIZE
        key_places = blocks * key_stride_block + slots * key_stride_token
        value_places = blocks * value_stride_block + slots * value_stride_token
        key_ptrs = key_ptr + key_places[:, None] + dims[None, :] * key_stride_dim
        value_ptrs = value_ptr + value_places[:, None] + dims[None, :] * value_stride_dim
        # The slots past the end may hold NaN: zero times NaN would reach the output.
        if MASKED:
            wanted = inside[:, None] & (dims[None, :] < HEAD_DIM)
            keys = tl.load(key_ptrs, mask=wanted, other=0.0)
            values = tl.load(value_ptrs, mask=wanted, other=0.0)
        elif HEAD_DIM < BLOCK_D:
            keys = tl.load(key_ptrs, mask=dims[None, :] < HEAD_DIM, other=0.0)
            values = tl.load(value_ptrs, mask=dims[None, :] < HEAD_DIM, other=0.0)
        else:
            keys = tl.load(key_ptrs)
            values = tl.load(value_ptrs)
        keys = keys.to(query.dtype)
        values = values.to(query.dtype)

        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        if IS_HALVED:
            scores = scores * unit[:, None]
        factor = scale
        if HAS_SOFT_CAP:
            # cap * tanh(score / cap), where soft_cap is already in log2 units
            scores = soft_cap * (2.0 * tl.sigmoid(scores * (2.0 * scale / soft_cap)) - 1.0)
            factor = 1.0
        if HAS_SLOPES:
            distance = (positions[None, :] - query_positions[:, None]).to(tl.float32)
            scores = scores * factor + slopes[:, None] * distance
            factor = 1.0
        if MASKED:
            visible = positions[None, :] <= query_positions[:, None]
            if WINDOW > 0:
                visible &= positions[None, :] > query_positions[:, None] - WINDOW
            scores = tl.where(visible, scores, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(scores, 1) * factor)
        # A row that has seen nothing yet keeps -inf; subtracting it from itself would be NaN.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
        shrink = tl.exp2(row_max - shift)
        weights = tl.exp2(scores * factor - shift[:, None])
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        output = tl.dot(
            weights.to(values.dtype), values, output * shrink[:, None], input_precision="ieee"
        )
        row_max = new_max
    return output, row_max, row_sum


def padded_dim(head_dim: int) -> int:
    padded: int = triton.next_power_of_2(head_dim)
    return padded


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; a handful under the interpreter, where every program costs milliseconds."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2
