"""Kernels of steps that have few rows of an adapter: its matrices pass once, at the rate of memory.

A program asks for its first piece of a matrix before it waits for the kernel that computes its
other operand (see overlap.py). B is multiplied in fp32, row by row: with a row or two for each
adapter, results of the tensor cores would be padding, far apart in their registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(tiles_ptr, ranks_ptr, ranks_stride, part):
    """(slot, first place in the order, the one after the last, rank; 0 without rows)"""
    tile_ptr = tiles_ptr + 3 * tl.program_id(0)
    slot = tl.load(tile_ptr).to(tl.int64)
    first = tl.load(tile_ptr + 1)
    end = tl.load(tile_ptr + 2)
    rank = tl.load(ranks_ptr + slot * ranks_stride + part)
    return slot, first, end, tl.where(first < end, rank, 0)


@triton.jit
def columns_of(columns_ptr, part, ALIGNMENT: tl.constexpr):
    """(first in y, first in b, how many); see `LoRASlots.part_columns`"""
    part_ptr = columns_ptr + 3 * part
    in_y = tl.multiple_of(tl.load(part_ptr), ALIGNMENT)
    in_b = tl.multiple_of(tl.load(part_ptr + 1), ALIGNMENT)
    return in_y, in_b, tl.multiple_of(tl.load(part_ptr + 2), ALIGNMENT)


@triton.jit
def rows_of(order_ptr, first, end, BLOCK_M: tl.constexpr):
    """(places in the order, rows there, which of them are)"""
    place = first + tl.arange(0, BLOCK_M)
    inside = place < end
    return place, tl.load(order_ptr + place, mask=inside, other=0).to(tl.int64), inside


@triton.jit
def shrunk_at(part, slice_, place, num_places, NUM_PARTS: tl.constexpr, MAX_RANK: tl.constexpr):
    return ((slice_ * NUM_PARTS + part).to(tl.int64) * num_places + place) * MAX_RANK


@triton.jit(do_not_specialize=["num_places"])
def shrink_rows(
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
    RANK_STEP: tl.constexpr,
    SLICE: tl.constexpr,
    WAYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program: a tile, SLICE columns of x, a part, and of every RANK_STEP ranks BLOCK_R.

    Each of WAYS warps takes its own columns of x.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    slice_ = tl.program_id(1)
    part = tl.program_id(2) % NUM_PARTS
    slot, first, end, rank = tile_of(tiles_ptr, ranks_ptr, ranks_stride, part)
    place, row, inside = rows_of(order_ptr, first, end, BLOCK_M)
    x_row_ptr = x_ptr + row[None, :, None] * x_stride
    is_row = inside[None, :, None]
    last_k = tl.minimum((slice_ + 1) * SLICE, in_features)
    way = tl.arange(0, WAYS)[:, None, None]
    for first_r in range(tl.program_id(2) // NUM_PARTS * BLOCK_R, rank, RANK_STEP):
        r = first_r + tl.arange(0, BLOCK_R)
        is_rank = (r < rank)[None, :, None]
        a_row_ptr = a_ptr + ((slot * NUM_PARTS + part) * MAX_RANK + r[None, :, None]) * in_features
        k = slice_ * SLICE + way * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
        a = tl.load(a_row_ptr + k, mask=is_rank & (k < last_k), other=0.0)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        x = tl.load(x_row_ptr + k, mask=is_row & (k < last_k), other=0.0)
        product = tl.zeros((WAYS, BLOCK_R, BLOCK_M), tl.float32)
        for _ in range(0, SLICE, WAYS * BLOCK_K):
            k += WAYS * BLOCK_K
            next_a = tl.load(a_row_ptr + k, mask=is_rank & (k < last_k), other=0.0)
            next_x = tl.load(x_row_ptr + k, mask=is_row & (k < last_k), other=0.0)
            x = tl.permute(x.to(a.dtype), (0, 2, 1))
            product = tl.dot(a, x, product, input_precision="ieee")
            a = next_a
            x = next_x
        start = shrunk_at(part, slice_, place, num_places, NUM_PARTS, MAX_RANK)
        tl.store(
            shrunk_ptr + start[None, :] + r[:, None],
            tl.sum(product, 0),
            mask=(r < rank)[:, None] & inside[None, :],
        )
    if OVERLAP:
        tl.extra.cuda.gdc_wait()  # also of those that have no ranks


@triton.jit
def _expanded(b, row_ptr, r, rank, stride, NUM_SLICES: tl.constexpr):
    """The product of a row: b [BLOCK_R, BLOCK_N] of ranks r; stride: between slices."""
    shrunk = tl.load(row_ptr + r, mask=r < rank, other=0.0)
    for slice_ in tl.static_range(1, NUM_SLICES):
        shrunk += tl.load(row_ptr + slice_ * stride + r, mask=r < rank, other=0.0)
    return tl.sum(b.to(tl.float32) * shrunk[:, None], 0)


@triton.jit(do_not_specialize=["num_places"])
def expand_rows(
    y_ptr,
    y_stride,
    b_ptr,
    b_stride,
    columns_ptr,
    ranks_ptr,
    ranks_stride,
    order_ptr,
    tiles_ptr,
    shrunk_ptr,
    num_places,
    NUM_PARTS: tl.constexpr,
    MAX_RANK: tl.constexpr,
    NUM_SLICES: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program: a tile, a part, BLOCK_N of its columns."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    part = tl.program_id(1)
    in_y, in_b, num_columns = columns_of(columns_ptr, part, ALIGNMENT)
    slot, first, end, rank = tile_of(tiles_ptr, ranks_ptr, ranks_stride, part)
    n = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    is_column = n < num_columns
    b_ptrs = b_ptr + (slot * MAX_RANK + r[:, None]) * b_stride + in_b + n[None, :]
    b = tl.load(b_ptrs, mask=(r < rank)[:, None] & is_column[None, :], other=0.0)
    has_work = (rank > 0) & (tl.min(n, 0) < num_columns)
    row = tl.load(order_ptr + first, mask=has_work, other=0).to(tl.int64)
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    if has_work:
        slice_stride = num_places.to(tl.int64) * (NUM_PARTS * MAX_RANK)
        for place in range(first, end):
            y_ptrs = y_ptr + row * y_stride + in_y + n
            y = tl.load(y_ptrs, mask=is_column, other=0.0).to(tl.float32)
            row = tl.load(order_ptr + place + 1, mask=place + 1 < end, other=0).to(tl.int64)
            row_ptr = shrunk_ptr + shrunk_at(part, 0, place, num_places, NUM_PARTS, MAX_RANK)
            y += _expanded(b, row_ptr, r, rank, slice_stride, NUM_SLICES)
            for first_r in range(BLOCK_R, rank, BLOCK_R):
                more = tl.load(
                    b_ptrs + first_r * b_stride,
                    mask=(first_r + r < rank)[:, None] & is_column[None, :],
                    other=0.0,
                )
                y += _expanded(more, row_ptr, first_r + r, rank, slice_stride, NUM_SLICES)
            tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=is_column)
