"""Attention of sequences with one new token each: bound by reading the cache.

    worker               walks its share of the tiles of keys (`decode_schedule`), pair by pair of a
                         sequence and a KV head, for all query heads of the pair at once
    (worker, query head) joins the parts of the pair that the worker before it began and it goes on
                         with

The grid is made of host numbers alone, so a CUDA graph can replay it on other contexts.
Source: Flash-Decoding (Dao et al., 2023); LeanAttention (Sanovar et al., 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.attention_tile import (
    LOG2_E,
    attend,
    load_queries,
    num_multiprocessors,
    padded_dim,
    store_rows,
)
from octavo_kernels.gpu.decode_schedule import decode_schedule, tiles_of, work_of
from octavo_kernels.gpu.overlap import can_overlap
from octavo_kernels.metadata import AttentionMetadata

_MIN_KEYS = 64  # of a worker: fewer would be read as fast, but leave more parts to join
_PARTS = 32  # that are joined at once


class DecodeConfig(NamedTuple):
    """How the kernel is cut: keys of a tile, warps, tiles in flight, workers a multiprocessor."""

    block_n: int
    num_warps: int
    num_stages: int
    workers: int


@triton.jit
def _part_rows(worker, is_first, heads, GROUP: tl.constexpr):
    """Rows of the parts. A worker has two: of a pair that begins with it, of one that does not."""
    return ((worker * 2 + is_first) * GROUP + heads).to(tl.int64)


@triton.jit(do_not_specialize=["tables_stride", "is_schedule_new"])
def _decode(
    out_ptr,
    part_ptr,
    weight_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    context_lens_ptr,
    schedule_ptr,
    slopes_ptr,
    num_kv_heads,
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
    is_schedule_new,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SOFT_CAP: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        if is_schedule_new:  # of the launch just before this one
            tl.extra.cuda.gdc_wait()
    worker = tl.program_id(0)
    rows = tl.arange(0, BLOCK_M)
    is_row = rows < GROUP
    sequence, kv_head, tile, tiles_left, _ = work_of(schedule_ptr, worker)
    context = tl.load(context_lens_ptr + sequence, mask=tiles_left > 0, other=0)
    if OVERLAP:  # the schedule and the contexts were there before, query and keys may not be
        tl.extra.cuda.gdc_wait()
    while tiles_left > 0:
        first_key, num_tiles = tiles_of(context, WINDOW, BLOCK_N)
        count = tl.minimum(num_tiles - tile, tiles_left)
        begin = first_key + tile * BLOCK_N
        end = tl.minimum(begin + count * BLOCK_N, context)

        heads = kv_head * GROUP + rows
        tokens = sequence + tl.zeros_like(rows)
        query = load_queries(
            query_ptr, tokens, heads, is_row, query_stride_token, query_stride_head,
            HEAD_DIM, BLOCK_D,
        )  # fmt: skip
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
            tables_ptr + sequence.to(tl.int64) * tables_stride,
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
        if count == num_tiles:
            store_rows(
                out_ptr, output, tokens, heads, is_row, out_stride_token, out_stride_head,
                HEAD_DIM, BLOCK_D,
            )  # fmt: skip
        else:
            part_rows = _part_rows(worker, (tile == 0).to(tl.int32), rows, GROUP)
            store_rows(
                part_ptr, output, part_rows, rows * 0, is_row, HEAD_DIM, 0, HEAD_DIM, BLOCK_D
            )
            tl.store(weight_ptr + part_rows, row_max + tl.log2(row_sum), mask=is_row)

        tiles_left -= count
        tile = tile * 0
        kv_head += 1
        is_next = kv_head == num_kv_heads
        sequence += is_next.to(tl.int32)
        kv_head = tl.where(is_next, 0, kv_head)
        context = tl.load(context_lens_ptr + sequence, mask=tiles_left > 0, other=0)


@triton.jit
def _join(
    out_ptr,
    part_ptr,
    weight_ptr,
    schedule_ptr,
    out_stride_token,
    out_stride_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    worker = tl.program_id(0)
    row = tl.program_id(1)
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    sequence, kv_head, _, _, num_parts = work_of(schedule_ptr, worker)
    if num_parts == 0:
        return
    lanes = tl.arange(0, PARTS)
    dims = tl.arange(0, BLOCK_D)
    output = tl.zeros([BLOCK_D], tl.float32)
    largest = float("-inf")
    total = 0.0
    for at in range(0, num_parts, PARTS):
        parts = at + lanes
        is_part = parts < num_parts
        places = _part_rows(worker - 1 + parts, (parts == 0).to(tl.int32), row, GROUP)
        weights = tl.load(weight_ptr + places, mask=is_part, other=float("-inf"))
        values = tl.load(
            part_ptr + places[:, None] * HEAD_DIM + dims[None, :],
            mask=is_part[:, None] & (dims[None, :] < HEAD_DIM),
            other=0.0,
        )
        new_largest = tl.maximum(largest, tl.max(weights, 0))
        shrink = tl.exp2(largest - new_largest)
        weights = tl.exp2(weights - new_largest)
        output = output * shrink + tl.sum(values * weights[:, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        largest = new_largest
    head = kv_head * GROUP + row
    tl.store(
        out_ptr + sequence.to(tl.int64) * out_stride_token + head * out_stride_head + dims,
        (output / total).to(out_ptr.dtype.element_ty),
        mask=dims < HEAD_DIM,
    )


# (padded head dimension, bytes of an element of the cache). Measured on an H200: (128, 2). As many
# workers as fit beside each other hide the start of each other's pairs; the others follow that.
_CONFIGS = {
    (64, 2): DecodeConfig(64, 4, 3, 4),
    (128, 2): DecodeConfig(64, 4, 2, 4),
    (256, 2): DecodeConfig(32, 4, 2, 3),
    (64, 1): DecodeConfig(128, 4, 3, 3),
    (128, 1): DecodeConfig(128, 4, 3, 2),
    (256, 1): DecodeConfig(64, 4, 2, 2),
    (64, 4): DecodeConfig(32, 4, 2, 4),
    (128, 4): DecodeConfig(32, 4, 2, 3),
    (256, 4): DecodeConfig(16, 4, 2, 3),
}


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    out: Tensor,
    *,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    alibi_slopes: Tensor | None,
    config: DecodeConfig | None = None,
) -> None:
    """Fills out [num_decodes, num_heads, head_dim], as far as metadata.counts says; a sequence of
    context_len 0 gets zeros.

    query: [num_decodes, num_heads, head_dim], the first sequences of `metadata`, at least one
    config: for measuring
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = value_cache.shape[1:3]
    group = num_heads // num_kv_heads
    config = config or _config(query, key_cache)
    num_workers = config.workers * num_multiprocessors(query.device)
    key = (decode_schedule, num_kv_heads, num_workers, config.block_n, sliding_window)
    schedule = metadata.shared.get(key)
    is_schedule_new = schedule is None
    if schedule is None:
        schedule = metadata.shared[key] = decode_schedule(
            metadata.context_lens,
            metadata.counts[:1],
            num_kv_heads=num_kv_heads,
            num_workers=num_workers,
            block_n=config.block_n,
            min_tiles=-(-_MIN_KEYS // config.block_n),
            sliding_window=sliding_window,
        )
    parts = torch.empty((num_workers, 2, group, head_dim), dtype=torch.float32, device=query.device)
    weights = torch.empty((num_workers, 2, group), dtype=torch.float32, device=query.device)
    overlaps = can_overlap(query.device)
    shared = {
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_dim(head_dim),
        "OVERLAP": overlaps,
    }
    _decode[(num_workers,)](
        out,
        parts,
        weights,
        query,
        key_cache,
        value_cache,
        metadata.block_tables,
        metadata.context_lens,
        schedule,
        alibi_slopes,
        num_kv_heads,
        scale * LOG2_E.value,
        soft_cap * LOG2_E.value,
        *out.stride()[:2],
        *query.stride()[:2],
        *key_cache.stride(),
        *value_cache.stride(),
        metadata.block_tables.stride(0),
        int(is_schedule_new),
        BLOCK_SIZE=block_size,
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_N=config.block_n,
        WINDOW=sliding_window,
        HAS_SOFT_CAP=soft_cap > 0,
        HAS_SLOPES=alibi_slopes is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        launch_pdl=overlaps,
        **shared,
    )
    _join[(num_workers, group)](
        out,
        parts,
        weights,
        schedule,
        *out.stride()[:2],
        PARTS=_PARTS,
        num_warps=4,
        launch_pdl=overlaps,
        **shared,
    )


def _config(query: Tensor, cache: Tensor) -> DecodeConfig:
    num_bytes = 4 if query.element_size() == 4 else cache.element_size()
    return _CONFIGS[max(padded_dim(query.shape[2]), 64), num_bytes]
