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
from torch import Tensor

from octavo_kernels.kv_cache import FP8


class TileConfig(NamedTuple):
    """How a kernel is cut: rows of queries, keys per step, warps, steps of keys in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


LOG2_E = tl.constexpr(1.4426950408889634)
IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def dims_of(cache_ptr, BLOCK_D: tl.constexpr):
    """The element of a head that each column of a tile is: of an fp8 cache, even ones first."""
    columns = tl.arange(0, BLOCK_D)
    if cache_ptr.dtype.element_ty == tl.int16:
        return columns % (BLOCK_D // 2) * 2 + columns // (BLOCK_D // 2)
    else:
        return columns


@triton.jit
def load_queries(
    query_ptr,
    tokens,
    heads,
    is_row,
    stride_token,
    stride_head,
    dims,
    HEAD_DIM: tl.constexpr,
):
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
    dims,
    HEAD_DIM: tl.constexpr,
):
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
def _unpack(pairs):
    """Pairs of fp8 numbers [N, W] as fp16 [N, 2 W]: the first of each, then the second of each."""
    if IS_INTERPRETED:
        first = (pairs & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
        second = ((pairs >> 8) & 0xFF).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)
    else:
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b32 both;
            .reg .b16 firsts, seconds;
            prmt.b32 both, $2, 0, 0x3120;
            mov.b32 {firsts, seconds}, both;
            cvt.rn.f16x2.e4m3x2 $0, firsts;
            cvt.rn.f16x2.e4m3x2 $1, seconds;
            }""",
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    joined = tl.join(first, second).permute(0, 2, 1)
    return joined.reshape(pairs.shape[0], 2 * pairs.shape[1])


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
    # A cache of pairs is one of fp8 numbers: loaded so, they pass through shared memory in the way
    # of numbers of 16 bits. As fp16, which holds them all, they take two instructions a pair.
    IS_PAIRED: tl.constexpr = key_ptr.dtype.element_ty == tl.int16
    IS_HALVED: tl.constexpr = IS_PAIRED and query.dtype == tl.bfloat16
    WIDTH: tl.constexpr = HEAD_DIM // 2 if IS_PAIRED else HEAD_DIM
    BLOCK_W: tl.constexpr = BLOCK_D // 2 if IS_PAIRED else BLOCK_D
    dims = tl.arange(0, BLOCK_W)
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
            wanted = inside[:, None] & (dims[None, :] < WIDTH)
            keys = tl.load(key_ptrs, mask=wanted, other=0)
            values = tl.load(value_ptrs, mask=wanted, other=0)
        elif WIDTH < BLOCK_W:
            keys = tl.load(key_ptrs, mask=dims[None, :] < WIDTH, other=0)
            values = tl.load(value_ptrs, mask=dims[None, :] < WIDTH, other=0)
        else:
            keys = tl.load(key_ptrs)
            values = tl.load(value_ptrs)
        if IS_PAIRED:
            keys = _unpack(keys).to(query.dtype)
            values = _unpack(values).to(query.dtype)

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


def packed(key_cache: Tensor, value_cache: Tensor) -> tuple[Tensor, Tensor]:
    """The caches as kernels read them: of fp8, pairs of elements of a head."""
    if value_cache.dtype is not FP8:
        return key_cache, value_cache
    keys = key_cache.transpose(2, 3).view(torch.int16).transpose(2, 3)
    return keys, value_cache.view(torch.int16)
