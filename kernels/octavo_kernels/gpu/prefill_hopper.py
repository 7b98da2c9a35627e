"""Prefill attention for Hopper: warps that copy, warps that compute.

    producer warp     block table ─▶ bulk copies ─▶ ring of SLOTS tiles: keys 0, values 0, ...
    two warpgroups    64 rows each: the scores of tile j on the tensor cores while tile j - 1 meets
                      its values there; the softmax of one overlaps the products of the other

A slot is `ready` when its bytes have arrived, `free` when both warpgroups are through with it. The
rows of a tile are tokens times the query heads of one KV head, as in `prefill_attention`. Programs
that each walk many tiles would hide the start of the next, but share the work less evenly: slower.
Source: FlashAttention-3 (Shah et al., 2024), §3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from octavo_kernels.gpu.attention_tile import LOG2_E
from octavo_kernels.gpu.prefill_hopper_copies import find_sequence, produce

_BLOCK_M = 128
_COLUMNS = 64  # of 2 bytes: the widest tile that the swizzle of the copies knows
_SHARED_BYTES = 220 * 1024


@gluon.jit
def _soften(scores, row_max, row_sum, scale, DTYPE: gl.constexpr):
    """One step of the running softmax: weights, their new state, and what the output shrinks by."""
    new_max = gl.maximum(row_max, gl.max(scores, 1) * scale)
    shrink = gl.exp2(row_max - new_max)
    weights = gl.exp2(scores * scale - new_max[:, None])
    row_sum = row_sum * shrink + gl.sum(weights, 1)
    return weights.to(DTYPE), new_max, row_sum, shrink


@gluon.jit
def _step(
    weights,
    output,
    row_max,
    row_sum,
    tile,
    queries,
    tiles,
    ready,
    free,
    no_scores,
    keys,
    positions,
    scale,
    MASKED: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr,
):
    """Scores of this tile; meanwhile the values of the one before it, whose weights are given."""
    step = 2 * tile
    key_slot = step % SLOTS
    value_slot = (step - 1) % SLOTS
    mbarrier.wait(ready.index(key_slot), (step // SLOTS) & 1)
    scores = warpgroup_mma(
        queries, tiles.index(key_slot).permute((1, 0)), no_scores, use_acc=False, is_async=True
    )
    mbarrier.wait(ready.index(value_slot), ((step - 1) // SLOTS) & 1)
    output = warpgroup_mma(weights, tiles.index(value_slot), output, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    gl.thread_barrier()  # one thread arrives for all
    mbarrier.arrive(free.index(key_slot))
    if MASKED:
        seen = tile * BLOCK_N + keys[None, :] <= positions[:, None]
        scores = gl.where(seen, scores, float("-inf"))
    next_weights, row_max, row_sum, shrink = _soften(scores, row_max, row_sum, scale, weights.dtype)
    output = warpgroup_mma_wait(0, deps=[output])
    gl.thread_barrier()
    mbarrier.arrive(free.index(value_slot))
    output *= gl.convert_layout(shrink, gl.SliceLayout(1, output.type.layout))[:, None]
    return gl.convert_layout(next_weights, weights.type.layout), output, row_max, row_sum


@gluon.jit
def _consume(
    out_ptr,
    query_ptr,
    queries,
    tiles,
    ready,
    free,
    start,
    first,
    query_len,
    prior,
    first_head,
    num_tiles,
    scale,
    out_stride_token,
    out_stride_head,
    query_stride_token,
    query_stride_head,
    WARPGROUP: gl.constexpr,
    GROUP: gl.constexpr,
    TOKENS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    SLOTS: gl.constexpr,
):
    ROWS: gl.constexpr = 64
    DTYPE: gl.constexpr = queries.dtype
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    output_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, output_layout, 2)
    rows_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    copy_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])

    rows = WARPGROUP * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, copy_layout))
    columns = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, copy_layout))
    tokens = first + rows // GROUP
    is_row = (rows < TOKENS * GROUP) & (tokens < query_len)
    places = (start + tokens).to(gl.int64) * query_stride_token
    places += (first_head + rows % GROUP) * query_stride_head
    query = gl.load(
        query_ptr + places[:, None] + columns[None, :],
        mask=is_row[:, None],
        other=0.0,
    )
    queries.store(query)
    fence_async_shared()
    gl.thread_barrier()

    positions = prior + first + (WARPGROUP * ROWS + gl.arange(0, ROWS, rows_layout)) // GROUP
    keys = gl.arange(0, BLOCK_N, gl.SliceLayout(0, scores_layout))
    num_seen = prior + first + (WARPGROUP * ROWS) // GROUP + 1  # keys that all rows see

    row_max = gl.full([ROWS], float("-inf"), gl.float32, rows_layout)
    row_sum = gl.full([ROWS], 0.0, gl.float32, rows_layout)
    output = gl.full([ROWS, HEAD_DIM], 0.0, gl.float32, output_layout)
    no_scores = gl.full([ROWS, BLOCK_N], 0.0, gl.float32, scores_layout)

    mbarrier.wait(ready.index(0), 0)
    scores = warpgroup_mma(queries, tiles.index(0).permute((1, 0)), no_scores, use_acc=False)
    gl.thread_barrier()
    mbarrier.arrive(free.index(0))
    if num_seen < BLOCK_N:
        scores = gl.where(keys[None, :] <= positions[:, None], scores, float("-inf"))
    weights, row_max, row_sum, _ = _soften(scores, row_max, row_sum, scale, DTYPE)
    weights = gl.convert_layout(weights, weights_layout)
    masked_from = gl.maximum(num_seen // BLOCK_N, 1)
    for tile in range(1, masked_from):
        weights, output, row_max, row_sum = _step(
            weights, output, row_max, row_sum, tile, queries, tiles, ready, free,
            no_scores, keys, positions, scale, False, BLOCK_N, SLOTS,
        )  # fmt: skip
    for tile in range(masked_from, num_tiles):
        weights, output, row_max, row_sum = _step(
            weights, output, row_max, row_sum, tile, queries, tiles, ready, free,
            no_scores, keys, positions, scale, True, BLOCK_N, SLOTS,
        )  # fmt: skip
    step = 2 * num_tiles - 1
    mbarrier.wait(ready.index(step % SLOTS), (step // SLOTS) & 1)
    output = warpgroup_mma(weights, tiles.index(step % SLOTS), output)

    output /= gl.convert_layout(row_sum, gl.SliceLayout(1, output_layout))[:, None]
    # Through shared memory, so that a thread writes 16 bytes at a time.
    queries.store(output.to(DTYPE))
    gl.thread_barrier()
    places = (start + tokens).to(gl.int64) * out_stride_token
    places += (first_head + rows % GROUP) * out_stride_head
    gl.store(
        out_ptr + places[:, None] + columns[None, :],
        queries.load(copy_layout),
        mask=is_row[:, None],
    )


# These differ from engine to engine: one compiled kernel must do for all.
@gluon.jit(do_not_specialize=["num_rows", "tables_stride"])
def _prefill(
    key_desc,
    value_desc,
    out_ptr,
    query_ptr,
    value_ptr,
    tables_ptr,
    starts_ptr,
    context_lens_ptr,
    counts_ptr,
    num_rows,
    num_kv_heads,
    scale,
    out_stride_token,
    out_stride_head,
    query_stride_token,
    query_stride_head,
    tables_stride,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr,
    COLUMNS: gl.constexpr,
):
    TOKENS: gl.constexpr = 128 // GROUP
    DTYPE: gl.constexpr = key_desc.dtype
    program = gl.num_programs(0) - 1 - gl.program_id(0)
    kv_head = program % num_kv_heads
    first_sequence = gl.load(counts_ptr)
    num_sequences = gl.load(counts_ptr + 1) - first_sequence
    sequence, start, query_len, context, tile = find_sequence(
        program // num_kv_heads,
        starts_ptr + first_sequence,
        context_lens_ptr + first_sequence,
        num_sequences,
        TOKENS,
    )
    first = tile * TOKENS
    if first < query_len:
        prior = context - query_len
        end = prior + gl.minimum(first + TOKENS, query_len)
        num_tiles = gl.cdiv(end, BLOCK_N)
        table_ptr = tables_ptr + (first_sequence + sequence).to(gl.int64) * tables_stride

        blocks_layout: gl.constexpr = key_desc.layout
        tile_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, HEAD_DIM], DTYPE)
        blocks = gl.allocate_shared_memory(
            DTYPE,
            [SLOTS * (BLOCK_N // BLOCK_SIZE) * (HEAD_DIM // COLUMNS), BLOCK_SIZE, COLUMNS],
            blocks_layout,
        )
        tiles = blocks._reinterpret(DTYPE, [SLOTS, BLOCK_N, HEAD_DIM], tile_layout)
        queries = gl.allocate_shared_memory(DTYPE, [2, 64, HEAD_DIM], tile_layout)
        ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
        free = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
        for slot in gl.static_range(SLOTS):
            mbarrier.init(ready.index(slot), count=1)
            mbarrier.init(free.index(slot), count=2)
        fence_async_shared()
        gl.thread_barrier()

        first_head = kv_head * GROUP
        gl.warp_specialize(
            [
                (_consume, (
                    out_ptr, query_ptr, queries.index(0), tiles, ready, free, start, first,
                    query_len, prior, first_head, num_tiles, scale, out_stride_token,
                    out_stride_head, query_stride_token, query_stride_head,
                    0, GROUP, TOKENS, BLOCK_N, HEAD_DIM, SLOTS,
                )),
                (_consume, (
                    out_ptr, query_ptr, queries.index(1), tiles, ready, free, start, first,
                    query_len, prior, first_head, num_tiles, scale, out_stride_token,
                    out_stride_head, query_stride_token, query_stride_head,
                    1, GROUP, TOKENS, BLOCK_N, HEAD_DIM, SLOTS,
                )),
                (produce, (
                    key_desc, value_desc, value_ptr, table_ptr, blocks, ready, free, kv_head,
                    num_kv_heads, num_rows, num_tiles, end,
                    BLOCK_SIZE, BLOCK_N, HEAD_DIM, SLOTS, COLUMNS,
                )),
            ],
            [4, 1],
            [232, 40],
        )  # fmt: skip


def fits_hopper(query: Tensor, key_cache: Tensor, value_cache: Tensor) -> bool:
    head_dim, block_size = key_cache.shape[2:]
    return (
        query.device.type == "cuda"
        and torch.cuda.get_device_capability(query.device)[0] == 9
        and query.element_size() == 2
        and query.dtype == key_cache.dtype  # the copied bytes are what the tensor cores multiply
        and head_dim in (64, 128)
        and block_size in (8, 16, 32, 64)
        and query.shape[1] // key_cache.shape[1] <= _BLOCK_M
        and key_cache.transpose(2, 3).is_contiguous()
        and value_cache.is_contiguous()
    )


def prefill_hopper(
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
    block_n: int = 128,
) -> None:
    """As `prefill_attention`, for what `fits_hopper`."""
    num_heads, head_dim = query.shape[1:]
    num_kv_heads, block_size = value_cache.shape[1:3]
    group = num_heads // num_kv_heads
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[query.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([block_size, _COLUMNS], dtype)

    def described(cache: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(
            cache.view(-1, head_dim), [block_size, _COLUMNS], layout
        )

    num_tiles = num_tokens // (_BLOCK_M // group) + num_chunks
    tile_bytes = block_n * head_dim * query.element_size()
    _prefill[(num_tiles * num_kv_heads,)](
        described(key_cache.transpose(2, 3)),
        described(value_cache),
        out,
        query,
        value_cache,
        block_tables,
        query_start_loc,
        context_lens,
        counts,
        value_cache.numel() // head_dim,
        num_kv_heads,
        scale * LOG2_E.value,
        *out.stride()[:2],
        *query.stride()[:2],
        block_tables.stride(0),
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        BLOCK_N=block_n,
        SLOTS=min(6, (_SHARED_BYTES - _BLOCK_M * head_dim * 2) // tile_bytes),
        COLUMNS=_COLUMNS,
        num_warps=4,
    )
