"""Causal attention of chunks of a prompt over the paged cache: bound by the tensor cores.

A program owns BLOCK_M rows of one sequence and one KV head: BLOCK_M / group tokens times the group
of query heads, so that short chunks fill a tile too. Tiles of keys that every row sees run
without masks; those on the diagonal, or at the edge of a window, with them.

    keys      0 ............ first token of the tile ... its last token
              [  no masks    ][        masked          ]

Programs count down from the end of the step, where the longest scans are.
Source: FlashAttention-2 (Dao, 2023), §3.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.attention_tile import (
    LOG2_E,
    TileConfig,
    attend,
    load_queries,
    padded_dim,
    store_rows,
)


@triton.jit
def _find_sequence(tile, starts_ptr, num_sequences, TOKENS: tl.constexpr):
    """The sequence of a tile, and the tile's place in it, which may be past its end.

    Sequence i begins at tile (starts[i] - starts[0]) // TOKENS + i: never before its neighbour's
    last tile, and known without a sum over the lengths.
    """
    first = tl.load(starts_ptr)
    sequence = -1
    for at in range(0, num_sequences, 128):
        candidates = at + tl.arange(0, 128)
        is_candidate = candidates < num_sequences
        starts = tl.load(starts_ptr + candidates, mask=is_candidate, other=0)
        begins = (starts - first) // TOKENS + candidates
        sequence += tl.sum((is_candidate & (begins <= tile)).to(tl.int32), 0)
    begin = (tl.load(starts_ptr + sequence) - first) // TOKENS + sequence
    return sequence, tile - begin


# It differs from engine to engine: one compiled kernel must do for all.
@triton.jit(do_not_specialize=["tables_stride"])
def _prefill(
    out_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    starts_ptr,
    context_lens_ptr,
    slopes_ptr,
    counts_ptr,
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
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = program % num_kv_heads
    first_sequence = tl.load(counts_ptr)
    num_sequences = tl.load(counts_ptr + 1) - first_sequence
    if num_sequences == 0:  # a graph that was captured for more
        return
    starts_ptr += first_sequence
    sequence, tile = _find_sequence(program // num_kv_heads, starts_ptr, num_sequences, TOKENS)
    start = tl.load(starts_ptr + sequence)
    query_len = tl.load(starts_ptr + sequence + 1) - start
    first = tile * TOKENS
    if first >= query_len:
        return
    context = tl.load(context_lens_ptr + first_sequence + sequence)
    prior = context - query_len

    rows = tl.arange(0, BLOCK_M)
    tokens = first + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    is_row = (rows < TOKENS * GROUP) & (tokens < query_len)
    query = load_queries(
        query_ptr, start + tokens, heads, is_row, query_stride_token, query_stride_head,
        HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    slopes = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + heads, mask=is_row, other=0.0) * LOG2_E
    positions = prior + tokens
    key_ptr += kv_head.to(tl.int64) * key_stride_head
    value_ptr += kv_head.to(tl.int64) * value_stride_head
    tables_ptr += (first_sequence + sequence).to(tl.int64) * tables_stride

    output = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if WINDOW > 0:
        masked_from = tl.maximum(prior + first + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
    else:
        masked_from = (prior + first + 1) // BLOCK_N * BLOCK_N
        output, row_max, row_sum = attend(
            output, row_max, row_sum, query, positions, slopes, 0, masked_from,
            key_ptr, value_ptr, tables_ptr, key_stride_block, key_stride_dim, key_stride_token,
            value_stride_block, value_stride_token, value_stride_dim, scale, soft_cap,
            False, WINDOW, HAS_SOFT_CAP, HAS_SLOPES, BLOCK_SIZE, BLOCK_N, HEAD_DIM, BLOCK_D,
        )  # fmt: skip
    end = prior + tl.minimum(first + TOKENS, query_len)
    output, row_max, row_sum = attend(
        output, row_max, row_sum, query, positions, slopes, masked_from, end,
        key_ptr, value_ptr, tables_ptr, key_stride_block, key_stride_dim, key_stride_token,
        value_stride_block, value_stride_token, value_stride_dim, scale, soft_cap,
        True, WINDOW, HAS_SOFT_CAP, HAS_SLOPES, BLOCK_SIZE, BLOCK_N, HEAD_DIM, BLOCK_D,
    )  # fmt: skip
    # With a window, a padding row past the sequence may have seen no key.
    output = output / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    store_rows(
        out_ptr, output, start + tokens, heads, is_row, out_stride_token, out_stride_head,
        HEAD_DIM, BLOCK_D,
    )  # fmt: skip


# Measured on an H200, fp8 (one byte) with 128 only; (padded head dimension, bytes of an element).
_CONFIGS = {
    (64, 1): TileConfig(128, 128, 8, 3),
    (128, 1): TileConfig(128, 128, 8, 2),
    (256, 1): TileConfig(128, 64, 8, 2),
    (64, 2): TileConfig(128, 128, 8, 3),
    (128, 2): TileConfig(128, 64, 8, 3),
    (256, 2): TileConfig(128, 64, 8, 2),
    (64, 4): TileConfig(32, 32, 4, 2),
    (128, 4): TileConfig(32, 32, 4, 2),
    (256, 4): TileConfig(16, 32, 4, 2),
}


def prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_start_loc: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    counts: Tensor,
    out: Tensor,
    *,
    num_chunks: int,
    num_tokens: int,
    scale: float,
    sliding_window: int,
    soft_cap: float,
    alibi_slopes: Tensor | None,
    config: TileConfig | None = None,
) -> None:
    """Fills the rows of `out` [T, num_heads, head_dim] that belong to prefill chunks.

    counts: [2] int32, the first sequence that is one and the number of sequences. num_chunks,
    num_tokens: at least as many as there are. `config` is for measuring.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = value_cache.shape[1:3]
    group = num_heads // num_kv_heads
    block_d = padded_dim(head_dim)
    num_bytes = 4 if query.element_size() == 4 else key_cache.element_size()
    config = config or _CONFIGS[max(block_d, 64), num_bytes]
    block_m = max(config.block_m, triton.next_power_of_2(group))
    num_tiles = num_tokens // (block_m // group) + num_chunks
    _prefill[(num_tiles * num_kv_heads,)](
        out,
        query,
        key_cache,
        value_cache,
        block_tables,
        query_start_loc,
        context_lens,
        alibi_slopes,
        counts,
        num_kv_heads,
        scale * LOG2_E.value,
        soft_cap * LOG2_E.value,
        *out.stride()[:2],
        *query.stride()[:2],
        *key_cache.stride(),
        *value_cache.stride(),
        block_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        BLOCK_SIZE=block_size,
        BLOCK_M=block_m,
        BLOCK_N=config.block_n,
        WINDOW=sliding_window,
        HAS_SOFT_CAP=soft_cap > 0,
        HAS_SLOPES=alibi_slopes is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
