"""Low-rank additions in two launches, for any number of adapters and any ranks among them.

    shrink   x[rows of a tile] Aᵀ  → shrunk   a program: a tile, a part, some ranks, a slice of x
    expand   y[rows of a tile] += shrunk Bᵀ   a program: a tile, some columns of one part

Tiles and ranks are read on the device: a graph fits every mixture of adapters. Programs of tiles
without rows, and of ranks that an adapter does not have, end at once. The slices of x are summed by
the expansion, always in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo_kernels.gpu.overlap import can_overlap
from octavo_kernels.lora import BLOCK_COLUMNS, LoRARows, LoRASlots

_SMALLEST = 16  # of a side of the tensor cores' operands
_MAX_BLOCK_RANK = 32
_BLOCK_K = 128
# Columns of x that one program reads of few rows: enough programs for all multiprocessors.
_SLICE = 1024


@triton.jit
def _tile(tiles_ptr, order_ptr, BLOCK_M: tl.constexpr):
    """(slot, places in the order, rows there, which of them are)"""
    tile_ptr = tiles_ptr + 3 * tl.program_id(0)
    slot = tl.load(tile_ptr).to(tl.int64)
    place = tl.load(tile_ptr + 1) + tl.arange(0, BLOCK_M)
    inside = place < tl.load(tile_ptr + 2)
    row = tl.load(order_ptr + place, mask=inside, other=0).to(tl.int64)
    return slot, place, row, inside


@triton.jit
def _shrunk_place(part, slice_, place, num_places, NUM_PARTS: tl.constexpr, MAX_RANK: tl.constexpr):
    return ((slice_ * NUM_PARTS + part).to(tl.int64) * num_places + place) * MAX_RANK


@triton.jit(do_not_specialize=["num_places"])
def _shrink(
    x_ptr,
    x_stride,
    a_ptr,
    ranks_ptr,
    ranks_stride,
    order_ptr,
    tiles_ptr,
    shrunk_ptr,
    num_places,
    in_features,
    NUM_PARTS: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_SLICES: tl.constexpr,
    SLICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, place, row, inside = _tile(tiles_ptr, order_ptr, BLOCK_M)
    part = tl.program_id(1)
    slice_ = tl.program_id(2) % NUM_SLICES
    r = tl.program_id(2) // NUM_SLICES * BLOCK_R + tl.arange(0, BLOCK_R)
    rank = tl.load(ranks_ptr + slot * ranks_stride + part)
    if (tl.max(inside.to(tl.int32), 0) > 0) & (tl.min(r, 0) < rank):
        a_row_ptr = a_ptr + ((slot * NUM_PARTS + part) * MAX_RANK + r) * in_features
        x_row_ptr = x_ptr + row * x_stride
        product = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        begin = slice_ * SLICE
        for at in range(begin, tl.minimum(begin + SLICE, in_features), BLOCK_K):
            k = at + tl.arange(0, BLOCK_K)
            is_column = k < in_features
            x = tl.load(
                x_row_ptr[:, None] + k[None, :],
                mask=inside[:, None] & is_column[None, :],
                other=0.0,
            )
            a = tl.load(
                a_row_ptr[None, :] + k[:, None],
                mask=(r < rank)[None, :] & is_column[:, None],
                other=0.0,
            )
            product = tl.dot(x.to(a.dtype), a, product, input_precision="ieee")
        start = _shrunk_place(part, slice_, place, num_places, NUM_PARTS, MAX_RANK)
        tl.store(
            shrunk_ptr + start[:, None] + r[None, :],
            product,
            mask=inside[:, None] & (r < rank)[None, :],
        )


@triton.jit(do_not_specialize=["num_places"])
def _pick(
    token_ids_ptr,
    a_ptr,
    ranks_ptr,
    ranks_stride,
    order_ptr,
    tiles_ptr,
    shrunk_ptr,
    num_places,
    vocab_size,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """`_shrink` of one-hot rows."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, place, row, inside = _tile(tiles_ptr, order_ptr, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    rank = tl.load(ranks_ptr + slot * ranks_stride)
    wanted = inside[:, None] & (r < rank)[None, :]
    token = tl.load(token_ids_ptr + row, mask=inside, other=0)
    a_row_ptr = a_ptr + (slot * MAX_RANK + r) * vocab_size
    picked = tl.load(a_row_ptr[None, :] + token[:, None], mask=wanted, other=0.0)
    start = place.to(tl.int64) * MAX_RANK
    tl.store(shrunk_ptr + start[:, None] + r[None, :], picked.to(tl.float32), mask=wanted)


@triton.jit(do_not_specialize=["num_places"])
def _expand(
    y_ptr,
    y_stride,
    b_ptr,
    b_stride,
    blocks_ptr,
    ranks_ptr,
    ranks_stride,
    order_ptr,
    tiles_ptr,
    shrunk_ptr,
    num_places,
    NUM_PARTS: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_SLICES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, place, row, inside = _tile(tiles_ptr, order_ptr, BLOCK_M)
    block_ptr = blocks_ptr + 4 * tl.program_id(1)
    part = tl.load(block_ptr)
    n = tl.arange(0, BLOCK_N)
    is_column = n < tl.load(block_ptr + 3)
    rank = tl.load(ranks_ptr + slot * ranks_stride + part)
    if (tl.max(inside.to(tl.int32), 0) > 0) & (rank > 0):
        first_rank_ptr = b_ptr + slot * MAX_RANK * b_stride + tl.load(block_ptr + 2) + n[None, :]
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, rank, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            wanted = inside[:, None] & (r < rank)[None, :]
            shrunk = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for slice_ in range(NUM_SLICES):
                start = _shrunk_place(part, slice_, place, num_places, NUM_PARTS, MAX_RANK)
                shrunk += tl.load(shrunk_ptr + start[:, None] + r[None, :], mask=wanted, other=0.0)
            b = tl.load(
                first_rank_ptr + r[:, None] * b_stride,
                mask=(r < rank)[:, None] & is_column[None, :],
                other=0.0,
            )
            product = tl.dot(shrunk.to(b.dtype), b, product, input_precision="ieee")
        at = y_ptr + row[:, None] * y_stride + tl.load(block_ptr + 1) + n[None, :]
        wanted = inside[:, None] & is_column[None, :]
        y = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
        tl.store(at, (y + product).to(y_ptr.dtype.element_ty), mask=wanted)


def add_lora(y: Tensor, x: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """See `octavo_kernels.lora.add_lora`. Can be captured in a graph, for other rows in replays."""
    _, num_parts, max_rank, in_features = slots.a.shape
    is_few = rows.tile_rows <= _SMALLEST
    piece = _SLICE if is_few else triton.cdiv(in_features, _BLOCK_K) * _BLOCK_K
    num_slices = triton.cdiv(in_features, piece)
    shrunk = _new_shrunk(slots, rows, num_slices)
    block_r = _block_rank(max_rank)
    overlap = can_overlap(x.device)
    _shrink[(len(rows.tiles), num_parts, triton.cdiv(max_rank, block_r) * num_slices)](
        x,
        x.stride(0),
        slots.a,
        slots.ranks,
        slots.ranks.stride(0),
        rows.order,
        rows.tiles,
        shrunk,
        shrunk.shape[2],
        in_features,
        NUM_PARTS=num_parts,
        MAX_RANK=max_rank,
        NUM_SLICES=num_slices,
        SLICE=piece,
        BLOCK_M=max(rows.tile_rows, _SMALLEST),
        BLOCK_R=block_r,
        BLOCK_K=_BLOCK_K,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=4,
    )
    _add_expanded(y, shrunk, slots, rows)


def add_lora_embedding(y: Tensor, token_ids: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """See `octavo_kernels.lora.add_lora_embedding`."""
    _, _, max_rank, vocab_size = slots.a.shape
    shrunk = _new_shrunk(slots, rows, 1)
    block_r = _block_rank(max_rank)
    overlap = can_overlap(y.device)
    _pick[(len(rows.tiles), triton.cdiv(max_rank, block_r))](
        token_ids,
        slots.a,
        slots.ranks,
        slots.ranks.stride(0),
        rows.order,
        rows.tiles,
        shrunk,
        shrunk.shape[2],
        vocab_size,
        MAX_RANK=max_rank,
        BLOCK_M=max(rows.tile_rows, _SMALLEST),
        BLOCK_R=block_r,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=4,
    )
    _add_expanded(y, shrunk, slots, rows)


def _add_expanded(y: Tensor, shrunk: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    num_slices, num_parts, num_places, max_rank = shrunk.shape
    overlap = can_overlap(y.device)
    _expand[(len(rows.tiles), len(slots.blocks))](
        y,
        y.stride(0),
        slots.b,
        slots.b.stride(1),
        slots.blocks,
        slots.ranks,
        slots.ranks.stride(0),
        rows.order,
        rows.tiles,
        shrunk,
        num_places,
        NUM_PARTS=num_parts,
        MAX_RANK=max_rank,
        NUM_SLICES=num_slices,
        BLOCK_M=max(rows.tile_rows, _SMALLEST),
        BLOCK_R=_block_rank(max_rank),
        BLOCK_N=BLOCK_COLUMNS,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=4,
    )


def _new_shrunk(slots: LoRASlots, rows: LoRARows, num_slices: int) -> Tensor:
    """[num_slices, num_parts, num_places, max_rank]; only what tiles and ranks cover is used."""
    _, num_parts, max_rank, _ = slots.a.shape
    shape = (num_slices, num_parts, len(rows.order), max_rank)
    return torch.empty(shape, dtype=torch.float32, device=slots.a.device)


def _block_rank(max_rank: int) -> int:
    return min(max(int(triton.next_power_of_2(max_rank)), _SMALLEST), _MAX_BLOCK_RANK)
