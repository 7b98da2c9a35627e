"""Encoder attention: a program owns a tile of rows of one head of one sequence, and all its keys.

Whole tiles of keys run without masks, the last one with them. Programs past the end of a shorter
sequence return at once, which costs less than finding out which sequence a tile is of.
Source: FlashAttention-2 (Dao, 2023), §3.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.attention_tile import (
    LOG2_E,
    TileConfig,
    load_queries,
    padded_dim,
    store_rows,
)


@triton.jit
def _attend(
    output,
    row_max,
    row_sum,
    query,
    begin,
    end,
    key_ptr,
    value_ptr,
    stride_token,
    scale,
    MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Adds the keys of rows [begin, end) to the running softmax and returns its new state.

    key_ptr, value_ptr: already at the head. scale: of the scores, times log2(e).
    MASKED: False promises whole tiles of keys.
    """
    dims = tl.arange(0, BLOCK_D)
    for at in tl.range(begin, end, BLOCK_N):
        rows = at + tl.arange(0, BLOCK_N)
        places = rows.to(tl.int64)[:, None] * stride_token + dims[None, :]
        if MASKED:
            wanted = (rows < end)[:, None] & (dims[None, :] < HEAD_DIM)
            keys = tl.load(key_ptr + places, mask=wanted, other=0.0)
            values = tl.load(value_ptr + places, mask=wanted, other=0.0)
        elif HEAD_DIM < BLOCK_D:
            keys = tl.load(key_ptr + places, mask=dims[None, :] < HEAD_DIM, other=0.0)
            values = tl.load(value_ptr + places, mask=dims[None, :] < HEAD_DIM, other=0.0)
        else:
            keys = tl.load(key_ptr + places)
            values = tl.load(value_ptr + places)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        if MASKED:
            scores = tl.where((rows < end)[None, :], scores, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        shrink = tl.exp2(row_max - new_max)
        weights = tl.exp2(scores * scale - new_max[:, None])
        row_sum = row_sum * shrink + tl.sum(weights, 1)
        output = tl.dot(
            weights.to(values.dtype), values, output * shrink[:, None], input_precision="ieee"
        )
        row_max = new_max
    return output, row_max, row_sum


@triton.jit
def _encoder(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    starts_ptr,
    scale,
    out_stride_token,
    stride_token,
    stride_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    start = tl.load(starts_ptr + tl.program_id(2))
    end = tl.load(starts_ptr + tl.program_id(2) + 1)
    if start + first >= end:
        return
    rows = start + first + tl.arange(0, BLOCK_M)
    is_row = rows < end
    query = load_queries(
        query_ptr, rows, head, is_row, stride_token, stride_head, HEAD_DIM, BLOCK_D
    )
    key_ptr += head.to(tl.int64) * stride_head
    value_ptr += head.to(tl.int64) * stride_head
    output = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    whole = start + (end - start) // BLOCK_N * BLOCK_N
    output, row_max, row_sum = _attend(
        output, row_max, row_sum, query, start, whole, key_ptr, value_ptr, stride_token, scale,
        False, BLOCK_N, HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    output, row_max, row_sum = _attend(
        output, row_max, row_sum, query, whole, end, key_ptr, value_ptr, stride_token, scale,
        True, BLOCK_N, HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    output = output / row_sum[:, None]
    store_rows(out_ptr, output, rows, head, is_row, out_stride_token, HEAD_DIM, HEAD_DIM, BLOCK_D)


# By (padded head dimension, bytes of an element): those of the prefill kernel, but for the first.
# 128 keys a step left room for one program at a time, and took a third longer on an H200.
_CONFIGS = {
    (64, 2): TileConfig(128, 64, 8, 3),
    (128, 2): TileConfig(128, 64, 8, 3),
    (256, 2): TileConfig(128, 64, 8, 2),
    (64, 4): TileConfig(32, 32, 4, 2),
    (128, 4): TileConfig(32, 32, 4, 2),
    (256, 4): TileConfig(16, 32, 4, 2),
}


def encoder_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    *,
    max_query_len: int,
    scale: float,
    out: Tensor,
    config: TileConfig | None = None,
) -> None:
    """Fills `out`, which is dense. `config` is for measuring."""
    _, num_heads, head_dim = query.shape
    block_d = padded_dim(head_dim)
    config = config or _CONFIGS[max(block_d, 64), query.element_size()]
    num_tiles = triton.cdiv(max_query_len, config.block_m)
    _encoder[(num_tiles, num_heads, query_start_loc.shape[0] - 1)](
        out,
        query,
        key,
        value,
        query_start_loc,
        scale * LOG2_E.value,
        out.stride(0),
        *query.stride()[:2],
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
