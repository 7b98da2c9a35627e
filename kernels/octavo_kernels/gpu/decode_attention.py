"""Attention of sequences with one new token each: bound by reading the cache.

    program (sequence, split, KV head)   reads its part of the context once, for all query heads
    program (sequence, query head)       joins the parts, where there are several

The grid is made of host numbers alone, so a CUDA graph can replay it on other contexts: every
program finds its part from context_lens on the device, and ends at once if there is none.
Source: Flash-Decoding (Dao et al., 2023).
"""

from __future__ import annotations

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
from octavo_kernels.gpu.overlap import can_overlap

_MAX_SPLITS = 64


@triton.jit
def _parts(context, num_splits, min_keys, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """First key that is read, keys of each part (whole tiles), and how many parts that makes."""
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(context - WINDOW, 0) // BLOCK_N * BLOCK_N
    tiles = tl.cdiv(tl.cdiv(context - begin, BLOCK_N), num_splits)
    keys = tl.maximum(tiles, tl.cdiv(min_keys, BLOCK_N)) * BLOCK_N
    return begin, keys, tl.cdiv(context - begin, keys)


@triton.jit(do_not_specialize=["tables_stride", "min_keys"])
def _decode(
    out_ptr,
    partial_ptr,
    weight_ptr,
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
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
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


@triton.jit(do_not_specialize=["num_splits", "min_keys"])
def _join(
    out_ptr,
    partial_ptr,
    weight_ptr,
    context_lens_ptr,
    num_splits,
    min_keys,
    out_stride_token,
    out_stride_head,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    context = tl.load(context_lens_ptr + sequence)
    _, _, num_parts = _parts(context, num_splits, min_keys, WINDOW, BLOCK_N)
    if num_parts <= 1:
        return
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, BLOCK_D)
    is_part = splits < num_parts
    places = (sequence * num_splits + splits) * num_heads + head
    weights = tl.load(weight_ptr + places, mask=is_part, other=float("-inf"))
    partial = tl.load(
        partial_ptr + places[:, None] * HEAD_DIM + dims[None, :],
        mask=is_part[:, None] & (dims[None, :] < HEAD_DIM),
        other=0.0,
    )
    weights = tl.exp2(weights - tl.max(weights, 0))
    output = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(
        out_ptr + sequence * out_stride_token + head * out_stride_head + dims,
        output.to(out_ptr.dtype.element_ty),
        mask=dims < HEAD_DIM,
    )


# Measured on an H200, fp8 (one byte) with 128 only; (padded head dimension, bytes of an element).
_CONFIGS = {
    (64, 2): TileConfig(16, 64, 4, 3),
    (128, 2): TileConfig(16, 64, 4, 2),
    (256, 2): TileConfig(16, 32, 4, 2),
    (64, 1): TileConfig(16, 128, 4, 3),
    (128, 1): TileConfig(16, 128, 4, 3),
    (256, 1): TileConfig(16, 64, 4, 2),
    (64, 4): TileConfig(16, 32, 4, 2),
    (128, 4): TileConfig(16, 32, 4, 2),
    (256, 4): TileConfig(16, 16, 4, 2),
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
    min_keys: int = 1,
) -> None:
    """Fills out [S, num_heads, head_dim]; a sequence of context_len 0 gets zeros.

    `config`, `num_splits` and `min_keys` are for measuring; what is chosen without them depends on
    shapes only.
    """
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, block_size = value_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_d = padded_dim(head_dim)
    pairs = num_sequences * num_kv_heads
    config = config or _config(pairs, query, key_cache)
    if num_splits is None:
        num_splits, min_keys = _splits(pairs, block_tables.shape[1] * block_size, query.device)
    shape = (num_sequences if num_splits > 1 else 0, num_splits, num_heads)
    partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=query.device)
    weight = torch.empty(shape, dtype=torch.float32, device=query.device)
    shared = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": block_d,
        "BLOCK_N": config.block_n,
        "WINDOW": sliding_window,
        # The joining programs start early and wait: a launch costs less (programmatic dependent
        # launch, CUDA programming guide).
        "OVERLAP": num_splits > 1 and can_overlap(query.device),
    }
    _decode[(num_kv_heads, num_splits, num_sequences)](
        out,
        partial,
        weight,
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
        BLOCK_SIZE=block_size,
        BLOCK_M=max(config.block_m, triton.next_power_of_2(group)),
        HAS_SOFT_CAP=soft_cap > 0,
        HAS_SLOPES=alibi_slopes is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **shared,
    )
    if num_splits > 1:
        _join[(num_heads, num_sequences)](
            out,
            partial,
            weight,
            context_lens,
            num_splits,
            min_keys,
            *out.stride()[:2],
            SPLITS=triton.next_power_of_2(num_splits),
            num_warps=1 if num_splits <= 8 else 4,
            launch_pdl=shared["OVERLAP"],
            **shared,
        )


def _splits(pairs: int, longest: int, device: torch.device) -> tuple[int, int]:
    """Splits of a context, and the least keys of a part, for `pairs` of a sequence and a KV head.

    Few pairs: parts so many that there are two programs per multiprocessor. Many: one part each,
    except that the longest context which the block tables can hold must not keep one program busy
    after all others are done. (Measured on an H200, Llama-3.1-8B: 63 contexts of 1,024 and one of
    32,768 take 158 us with 8 splits and 860 us with one; 64 of 1,024, 72 us and 67 us.)
    """
    balanced = max(1, min(_MAX_SPLITS, 2 * num_multiprocessors(device) // pairs))
    num_splits = max(balanced, min(8, -(-longest // 4096)))
    return num_splits, max(128, 1024 // balanced) if balanced > 1 else 2048


def _config(pairs: int, query: Tensor, cache: Tensor) -> TileConfig:
    """Few programs each keep more in flight; many share the memory of a multiprocessor.

    Not with fp8, which is bound by the instructions that convert it (H200: half of the read rate).
    """
    num_bytes = 4 if query.element_size() == 4 else cache.element_size()
    config = _CONFIGS[max(padded_dim(query.shape[2]), 64), num_bytes]
    is_few = num_bytes > 1 and pairs <= 2 * num_multiprocessors(query.device)
    return config._replace(num_stages=config.num_stages + is_few)
