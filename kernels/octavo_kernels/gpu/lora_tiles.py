"""Kernels of steps that have many rows of an adapter: products of tiles, on the tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.gpu.lora_rows import columns_of, rows_of, shrunk_at, tile_of


@triton.jit(do_not_specialize=["num_places"])
def shrink_tiles(
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
    """A program: a tile, a part, BLOCK_R ranks, SLICE columns of x."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    part = tl.program_id(1)
    slice_ = tl.program_id(2) % NUM_SLICES
    slot, first, end, rank = tile_of(tiles_ptr, ranks_ptr, ranks_stride, part)
    r = tl.program_id(2) // NUM_SLICES * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.min(r, 0) < rank:
        place, row, inside = rows_of(order_ptr, first, end, BLOCK_M)
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
        start = shrunk_at(part, slice_, place, num_places, NUM_PARTS, MAX_RANK)
        tl.store(
            shrunk_ptr + start[:, None] + r[None, :],
            product,
            mask=inside[:, None] & (r < rank)[None, :],
        )


@triton.jit(do_not_specialize=["num_places"])
def pick_tiles(
    token_ids_ptr,
    a_ptr,
    ranks_ptr,
    ranks_stride,
    order_ptr,
    tiles_ptr,
    shrunk_ptr,
    vocab_size,
    MAX_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """`shrink_tiles` of one-hot rows."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot, first, end, rank = tile_of(tiles_ptr, ranks_ptr, ranks_stride, 0)
    place, row, inside = rows_of(order_ptr, first, end, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    wanted = inside[:, None] & (r < rank)[None, :]
    token = tl.load(token_ids_ptr + row, mask=inside, other=0)
    a_row_ptr = a_ptr + (slot * MAX_RANK + r) * vocab_size
    picked = tl.load(a_row_ptr[None, :] + token[:, None], mask=wanted, other=0.0)
    start = place.to(tl.int64) * MAX_RANK
    tl.store(shrunk_ptr + start[:, None] + r[None, :], picked.to(tl.float32), mask=wanted)


@triton.jit(do_not_specialize=["num_places"])
def expand_tiles(
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
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A program: a tile, a part, BLOCK_N of its columns."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    part = tl.program_id(1)
    in_y, in_b, num_columns = columns_of(columns_ptr, part, ALIGNMENT)
    slot, first, end, rank = tile_of(tiles_ptr, ranks_ptr, ranks_stride, part)
    first_n = tl.program_id(2) * BLOCK_N
    if (rank > 0) & (first_n < num_columns):
        n = first_n + tl.arange(0, BLOCK_N)
        is_column = n < num_columns
        place, row, inside = rows_of(order_ptr, first, end, BLOCK_M)
        first_rank_ptr = b_ptr + slot * MAX_RANK * b_stride + in_b + n[None, :]
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first_r in range(0, rank, BLOCK_R):
            r = first_r + tl.arange(0, BLOCK_R)
            wanted = inside[:, None] & (r < rank)[None, :]
            shrunk = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
            for slice_ in range(NUM_SLICES):
                start = shrunk_at(part, slice_, place, num_places, NUM_PARTS, MAX_RANK)
                shrunk += tl.load(shrunk_ptr + start[:, None] + r[None, :], mask=wanted, other=0.0)
            b = tl.load(
                first_rank_ptr + r[:, None] * b_stride,
                mask=(r < rank)[:, None] & is_column[None, :],
                other=0.0,
            )
            product = tl.dot(shrunk.to(b.dtype), b, product, input_precision="ieee")
        at = y_ptr + row[:, None] * y_stride + in_y + n[None, :]
        wanted = inside[:, None] & is_column[None, :]
        y = tl.load(at, mask=wanted, other=0.0).to(tl.float32)
        tl.store(at, (y + product).to(y_ptr.dtype.element_ty), mask=wanted)
