"""Shares the keys of a batch of decodes among a fixed number of workers, all of them alike.

The tiles of keys of all pairs of a sequence and a KV head lie in one row; each worker takes the
same number of neighbours, wherever a pair begins or ends:

    pairs    | (0, 0) ........ | (0, 1) ........ | (1, 0) ..... | (1, 1) ..... |
    workers  | 0 ......... | 1 ......... | 2 ......... | 3 ......... | 4 ..... |

So no worker waits for the longest context, and the grid depends on the GPU alone: a CUDA graph can
replay it on other contexts. Computed on the device once a step, for all layers.
Source: Stream-K (Osama et al., 2023); LeanAttention (Sanovar et al., 2024), for decodes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LANES = 256  # sequences that are looked at together
_RECORD = tl.constexpr(5)


@triton.jit
def tiles_of(context, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """First key that is read, a multiple of BLOCK_N, and tiles of keys from there to the context.

    A padded row of the batch has no context and one empty tile: its worker writes zeros.
    """
    first_key = context * 0
    if WINDOW > 0:
        first_key = tl.maximum(context - WINDOW, 0) // BLOCK_N * BLOCK_N
    return first_key, tl.maximum(tl.cdiv(context - first_key, BLOCK_N), 1)


@triton.jit
def work_of(schedule_ptr, worker):
    """The worker's record, see `decode_schedule`."""
    record_ptr = schedule_ptr + worker * _RECORD
    return (
        tl.load(record_ptr),
        tl.load(record_ptr + 1),
        tl.load(record_ptr + 2),
        tl.load(record_ptr + 3),
        tl.load(record_ptr + 4),
    )


@triton.jit
def _schedule(
    schedule_ptr,
    context_lens_ptr,
    num_sequences_ptr,
    num_workers,
    min_tiles,
    num_kv_heads,
    WINDOW: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LANES: tl.constexpr,
):
    worker = tl.program_id(0)
    num_sequences = tl.load(num_sequences_ptr)
    lanes = tl.arange(0, LANES)
    total = 0
    for at in range(0, num_sequences, LANES):
        inside = at + lanes < num_sequences
        context = tl.load(context_lens_ptr + at + lanes, mask=inside, other=0)
        _, tiles = tiles_of(context, WINDOW, BLOCK_N)
        total += tl.sum(tl.where(inside, tiles, 0), 0)
    count = tl.maximum(tl.cdiv(total * num_kv_heads, num_workers), min_tiles)
    first = worker * count

    sequence, skipped, passed = 0, 0, 0
    for at in range(0, num_sequences, LANES):
        inside = at + lanes < num_sequences
        context = tl.load(context_lens_ptr + at + lanes, mask=inside, other=0)
        _, tiles = tiles_of(context, WINDOW, BLOCK_N)
        tiles = tl.where(inside, tiles, 0)
        ends = passed + tl.cumsum(tiles, 0)
        is_before = inside & (ends * num_kv_heads <= first)
        sequence += tl.sum(is_before.to(tl.int32), 0)
        skipped += tl.sum(tl.where(is_before, tiles, 0), 0)
        passed += tl.sum(tiles, 0)

    head, tile, num_parts = 0, 0, 0
    if sequence < num_sequences:
        context = tl.load(context_lens_ptr + sequence)
        _, tiles_here = tiles_of(context, WINDOW, BLOCK_N)
        rest = first - skipped * num_kv_heads
        head, tile = rest // tiles_here, rest % tiles_here
        if (tile > 0) & (tile <= count):
            num_parts = 1 + tl.cdiv(tiles_here - tile, count)
    record_ptr = schedule_ptr + worker * _RECORD
    tl.store(record_ptr, sequence)
    tl.store(record_ptr + 1, head)
    tl.store(record_ptr + 2, tile)
    tl.store(record_ptr + 3, tl.maximum(tl.minimum(count, total * num_kv_heads - first), 0))
    tl.store(record_ptr + 4, num_parts)


def decode_schedule(
    context_lens: Tensor,
    num_sequences: Tensor,
    *,
    num_kv_heads: int,
    num_workers: int,
    block_n: int,
    min_tiles: int,
    sliding_window: int = 0,
) -> Tensor:
    """[num_workers, 5] int32, of each worker: sequence, KV head and tile where it begins; how many
    tiles it has, zero if there are not enough; and the number of parts of the pair it begins in,
    if that began with the worker before it, else zero.

    context_lens: int32, of at least as many as num_sequences, [1] int32, says. block_n: keys of a
    tile. min_tiles: of a worker that has any but the last of them.
    """
    shape = (num_workers, _RECORD.value)
    schedule = torch.empty(shape, dtype=torch.int32, device=context_lens.device)
    _schedule[(num_workers,)](
        schedule,
        context_lens,
        num_sequences,
        num_workers,
        min_tiles,
        num_kv_heads,
        WINDOW=sliding_window,
        BLOCK_N=block_n,
        LANES=_LANES,
        num_warps=4,
    )
    return schedule
