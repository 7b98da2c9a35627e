"""Attention of sequences with one new token each: bound by reading the cache.

    program (sequence, part of its context, KV head)   reads its part once, for all query heads;
                                                       the last to finish joins the parts

The grid is made of host numbers alone, so a CUDA graph can replay it on other contexts: every
program finds its part from context_lens on the device, and ends at once if there is none.
Source: Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.attention_tile import (
    LOG2_E,
    TileConfig,
    attend,
    load_queries,
    num_multiprocessors,
    padded_dim,
    store_rows,
)

_MAX_SPLITS = 64
_MAX_SPLIT_PAIRS = 4096


@triton.jit
def _parts(context, num_splits, min_keys, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """First key that is read, keys of each part (whole tiles), and how many parts that makes."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0) // BLOCK_N * BLOCK_N
    tiles = tl.cdiv(tl.cdiv(context - begin, BLOCK_N), num_splits)
    keys = tl.maximum(tiles * BLOCK_N, min_keys)
    return begin, keys, tl.cdiv(context - begin, keys)


@triton.jit(do_not_specialize=["tables_stride"])
def _decode(
    out_ptr,
    partial_ptr,
    weight_ptr,
    arrivals_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    context_lens_ptr,
    slopes_ptr,
    scale,
    soft_cap,
    out_stride_token,
    out_stride_head,
    query_stride_token,
    query_stride_head,
    key_stride_block: tl.constexpr,
    key_stride_head: tl.constexpr,
    key_stride_dim: tl.constexpr,
    key_stride_token: tl.constexpr,
    value_stride_block: tl.constexpr,
    value_stride_head: tl.constexpr,
    value_stride_token: tl.constexpr,
    value_stride_dim: tl.constexpr,
    tables_stride,
    min_keys,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
):
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    num_splits = tl.num_programs(1)
    num_heads = tl.num_programs(0) * GROUP

    context = tl.load(context_lens_ptr + sequence)
    first_key, part_keys, num_parts = _parts(context, num_splits, min_keys, WINDOW, BLOCK_N)
    if split >= tl.maximum(num_parts, 1):
        return
    begin = first_key + split * part_keys
    end = tl.minimum(begin + part_keys, context)

    rows = tl.arange(0, BLOCK_M)
    heads = kv_head * GROUP + rows
    is_row = rows < GROUP
    tokens = sequence + tl.zeros_like(rows)
    query = load_queries(
        query_ptr, tokens, heads, is_row, query_stride_token, query_stride_head, HEAD_DIM, BLOCK_D
    )
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + heads, mask=is_row, other=0.0) * LOG2_E
    output, row_max, row_sum = attend(
        tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
        query,
        tl.zeros_like(rows) + context - 1,
        slopes,
        begin,
        end,
        key_ptr + kv_head.to(tl.int64) * key_stride_head,
        value_ptr + kv_head.to(tl.int64) * value_stride_head,
        tables_ptr + sequence * tables_stride,
        key_stride_block,
        key_stride_dim,
        key_stride_token,
        value_stride_block,
        value_stride_token,
        value_stride_dim,
        scale,
        soft_cap,
        True,
        WINDOW,
        HAS_SOFT_CAP,
        HAS_SLOPES,
        BLOCK_SIZE,
        BLOCK_N,
        HEAD_DIM,
        BLOCK_D,
    )
    # A padded row of the batch has no context and no weight: its output is zero.
    output = output / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    if num_parts <= 1:
        store_rows(
            out_ptr, output, tokens, heads, is_row, out_stride_token, out_stride_head,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
    else:
        part = (sequence * num_splits + split) * num_heads
        store_rows(
            partial_ptr, output, part + tl.zeros_like(rows), heads, is_row, HEAD_DIM, HEAD_DIM,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
        tl.store(weight_ptr + part + heads, row_max + tl.log2(row_sum), mask=is_row)
        tl.debug_barrier()  # every thread has stored before one of them says so
        arrival_ptr = arrivals_ptr + sequence * tl.num_programs(0) + kv_head
        if tl.atomic_add(arrival_ptr, 1, sem="acq_rel") == num_parts - 1:
            tl.store(arrival_ptr, 0)  # for the next launch
            first_part = sequence * num_splits * num_heads + kv_head * GROUP
            _join(
                out_ptr + sequence * out_stride_token + kv_head * GROUP * out_stride_head,
                partial_ptr + first_part * HEAD_DIM,
                weight_ptr + first_part,
                num_parts,
                num_heads,
                out_stride_head,
                GROUP,
                HEAD_DIM,
                BLOCK_D,
            )


@triton.jit
def _join(
    out_ptr,
    partial_ptr,
    weight_ptr,
    num_parts,
    num_heads,
    out_stride_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Parts [num_parts, num_heads, HEAD_DIM] into out [GROUP, HEAD_DIM], always in one order."""
    HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
    PARTS: tl.constexpr = max(1, 4096 // (HEADS * BLOCK_D))  # a tile that fits the registers
    heads = tl.arange(0, HEADS)
    dims = tl.arange(0, BLOCK_D)
    is_place = (heads[:, None] < GROUP) & (dims[None, :] < HEAD_DIM)
    output = tl.zeros([HEADS, BLOCK_D], tl.float32)
    most = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    for first in range(0, num_parts, PARTS):
        parts = first + tl.arange(0, PARTS)
        is_part = parts < num_parts
        places = parts[:, None] * num_heads + heads[None, :]
        # Other programs wrote these: not from this multiprocessor's own cache.
        weights = tl.load(
            weight_ptr + places,
            mask=is_part[:, None] & (heads[None, :] < GROUP),
            other=float("-inf"),
            cache_modifier=".cg",
        )
        partial = tl.load(
            partial_ptr + places[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=is_part[:, None, None] & is_place[None, :, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_most = tl.maximum(most, tl.max(weights, 0))
        shift = tl.where(new_most == float("-inf"), 0.0, new_most)  # rows of no head
        shrink = tl.exp2(most - shift)
        weights = tl.exp2(weights - shift[None, :])
        output = output * shrink[:, None] + tl.sum(partial * weights[:, :, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        most = new_most
    output = output / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        out_ptr + heads[:, None] * out_stride_head + dims[None, :],
        output.to(out_ptr.dtype.element_ty),
        mask=is_place,
    )


# Measured on an H200; (padded head dimension, bytes of an element).
_CONFIGS = {
    (64, 2): TileConfig(16, 64, 4, 4),
    (128, 2): TileConfig(16, 64, 4, 4),
    (256, 2): TileConfig(16, 32, 4, 3),
    (64, 4): TileConfig(16, 32, 4, 3),
    (128, 4): TileConfig(16, 32, 4, 3),
    (256, 4): TileConfig(16, 16, 4, 3),
}


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    out: Tensor,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    alibi_slopes: Tensor | None,
    config: TileConfig | None = None,
    num_splits: int | None = None,
    min_keys: int = 256,
) -> None:
    """Fills out [S, num_heads, head_dim]; a sequence of context_len 0 gets zeros.

    `config` and `num_splits` are for measuring; what is chosen without them depends on shapes only.
    """
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, block_size = value_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_d = padded_dim(head_dim)
    config = config or _CONFIGS[max(block_d, 64), query.element_size()]
    num_splits = num_splits or _num_splits(num_sequences * num_kv_heads, query.device)
    min_keys = -(-min_keys // config.block_n) * config.block_n
    shape = (num_sequences if num_splits > 1 else 0, num_splits, num_heads)
    partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
    weight = torch.empty(shape, dtype=torch.float32, device=query.device)
    _decode[(num_kv_heads, num_splits, num_sequences)](
        out,
        partial,
        weight,
        _arrivals(query.device),
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lens,
        alibi_slopes,
        scale * LOG2_E.value,
        soft_cap * LOG2_E.value,
        *out.stride()[:2],
        *query.stride()[:2],
        *key_cache.stride(),
        *value_cache.stride(),
        block_tables.stride(0),
        min_keys,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=block_size,
        BLOCK_M=max(config.block_m, triton.next_power_of_2(group)),
        BLOCK_N=config.block_n,
        WINDOW=sliding_window,
        HAS_SOFT_CAP=soft_cap > 0,
        HAS_SLOPES=alibi_slopes is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


@functools.cache
def _arrivals(device: torch.device) -> Tensor:
    """Counters of (sequence, KV head): zeros, which each launch leaves as zeros.

    One launch at a time may use them. Made by a launch before the first capture, which a kernel
    needs anyhow, lest its zeroing is captured too.
    """
    return torch.zeros(_MAX_SPLIT_PAIRS, dtype=torch.int32, device=device)


def _num_splits(pairs: int, device: torch.device) -> int:
    """Enough programs for several waves even where contexts differ; one split joins nothing."""
    wanted = 8 * num_multiprocessors(device)
    return max(1, min(_MAX_SPLITS, wanted // pairs))
