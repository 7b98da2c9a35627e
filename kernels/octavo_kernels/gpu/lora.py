"""Low-rank additions in two launches, for any number of adapters and any ranks among them.

    shrink   x[rows of a tile] Aᵀ  → shrunk   a program: a tile, a part, some ranks, a slice of x
    expand   y[rows of a tile] += shrunk Bᵀ   a program: a tile, some columns of one part

Tiles and ranks are read on the device: a graph fits every mixture of adapters. Programs of tiles
without rows, and of ranks that an adapter does not have, end at once. The slices of x are summed by
the expansion, always in the same order.

Tiles of few rows and of many have kernels of their own (lora_rows.py, lora_tiles.py). Tiles, ranks
and matrices are read before the kernels that come before have ended: none of those writes them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from octavo_kernels.gpu.lora_rows import expand_rows, shrink_rows
from octavo_kernels.gpu.lora_tiles import expand_tiles, pick_tiles, shrink_tiles
from octavo_kernels.gpu.overlap import can_overlap
from octavo_kernels.lora import LoRARows, LoRASlots

_FEW_ROWS = 16  # at most, of a tile
_SMALLEST = 16  # of the tensor cores' first operand
_FEWEST = 8  # of their second
# Launches for few rows, the fastest found for 64 adapters of rank 16 on an H200. A program reads
# _SLICE columns of x, twice as many where more programs than run at once (_ONE_WAVE) would; _WAYS
# warps share them, _WAY_K columns each at a time. Large ranks are shared by _RANK_PROGRAMS.
_SLICE, _ONE_WAVE, _WAYS, _WAY_K, _RANK_PROGRAMS = 1024, 528, 4, 64, 4
# Of B a program holds so many numbers: at most so many ranks, and columns.
_B_SIZE, _B_RANKS, _B_COLUMNS = 1 << 13, 64, 512
# Launches for many rows.
_TILE_SLICE, _TILE_K, _TILE_N, _TILE_RANKS = 2048, 128, 128, 32


def add_lora(y: Tensor, x: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """See `octavo_kernels.lora.add_lora`. Can be captured in a graph, for other rows in replays."""
    expand(y, shrink(x, slots, rows), slots, rows)


def add_lora_embedding(y: Tensor, token_ids: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """See `octavo_kernels.lora.add_lora_embedding`."""
    _, _, max_rank, vocab_size = slots.a.shape
    shrunk = _new_shrunk(slots, rows, 1)
    block_r = _tile_ranks(max_rank)
    overlap = can_overlap(y.device)
    pick_tiles[(len(rows.tiles), triton.cdiv(max_rank, block_r))](
        token_ids,
        slots.a,
        slots.ranks,
        slots.ranks.stride(0),
        rows.order,
        rows.tiles,
        shrunk,
        vocab_size,
        MAX_RANK=max_rank,
        BLOCK_M=max(rows.tile_rows, _SMALLEST),
        BLOCK_R=block_r,
        OVERLAP=overlap,
        launch_pdl=overlap,
        num_warps=4,
    )
    expand(y, shrunk, slots, rows)


def shrink(x: Tensor, slots: LoRASlots, rows: LoRARows) -> Tensor:
    """x Aᵀ in slices that are yet to be summed: [num_slices, num_parts, num_places, max_rank] fp32;
    only what tiles and ranks cover is defined.
    """
    _, num_parts, max_rank, in_features = slots.a.shape
    num_tiles = len(rows.tiles)
    size = _slice_size(in_features, num_tiles * num_parts) if _is_few(rows) else _TILE_SLICE
    num_slices = triton.cdiv(in_features, size)
    shrunk = _new_shrunk(slots, rows, num_slices)
    overlap = can_overlap(x.device)
    operands = (
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
    )
    settings = {
        "NUM_PARTS": num_parts,
        "MAX_RANK": max_rank,
        "SLICE": size,
        "OVERLAP": overlap,
        "launch_pdl": overlap,
        "num_warps": 4,
    }
    if _is_few(rows):
        programs = min(triton.cdiv(max_rank, _SMALLEST), _RANK_PROGRAMS)
        shrink_rows[(num_tiles, num_slices, num_parts * programs)](
            *operands,
            RANK_STEP=programs * _SMALLEST,
            WAYS=_WAYS,
            BLOCK_M=max(rows.tile_rows, _FEWEST),
            BLOCK_R=_SMALLEST,
            BLOCK_K=_WAY_K,
            **settings,
        )
    else:
        block_r = _tile_ranks(max_rank)
        shrink_tiles[(num_tiles, num_parts, triton.cdiv(max_rank, block_r) * num_slices)](
            *operands,
            NUM_SLICES=num_slices,
            BLOCK_M=rows.tile_rows,
            BLOCK_R=block_r,
            BLOCK_K=_TILE_K,
            **settings,
        )
    return shrunk


def expand(y: Tensor, shrunk: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """Adds shrunk Bᵀ to y."""
    num_slices, num_parts, num_places, max_rank = shrunk.shape
    overlap = can_overlap(y.device)
    operands = (
        y,
        y.stride(0),
        slots.b,
        slots.b.stride(1),
        slots.part_columns,
        slots.ranks,
        slots.ranks.stride(0),
        rows.order,
        rows.tiles,
        shrunk,
        num_places,
    )
    settings = {
        "NUM_PARTS": num_parts,
        "MAX_RANK": max_rank,
        "NUM_SLICES": num_slices,
        "ALIGNMENT": slots.alignment,
        "OVERLAP": overlap,
        "launch_pdl": overlap,
    }
    largest = max(part.size for part in slots.parts)
    if _is_few(rows):
        block_r = min(int(triton.next_power_of_2(max_rank)), _B_RANKS)
        block_n = min(_B_SIZE // block_r, _B_COLUMNS)
        expand_rows[(len(rows.tiles), num_parts, triton.cdiv(largest, block_n))](
            *operands, BLOCK_R=block_r, BLOCK_N=block_n, num_warps=2, **settings
        )
    else:
        expand_tiles[(len(rows.tiles), num_parts, triton.cdiv(largest, _TILE_N))](
            *operands,
            BLOCK_M=rows.tile_rows,
            BLOCK_R=_tile_ranks(max_rank),
            BLOCK_N=_TILE_N,
            num_warps=4,
            **settings,
        )


def _is_few(rows: LoRARows) -> bool:
    return rows.tile_rows <= _FEW_ROWS


def _slice_size(in_features: int, num_products: int) -> int:
    """Columns of x that a program for few rows reads."""
    num_programs = num_products * triton.cdiv(in_features, _SLICE)
    return 2 * _SLICE if num_programs > _ONE_WAVE else _SLICE


def _new_shrunk(slots: LoRASlots, rows: LoRARows, num_slices: int) -> Tensor:
    _, num_parts, max_rank, _ = slots.a.shape
    shape = (num_slices, num_parts, len(rows.order), max_rank)
    return torch.empty(shape, dtype=torch.float32, device=slots.a.device)


def _tile_ranks(max_rank: int) -> int:
    return min(max(int(triton.next_power_of_2(max_rank)), _SMALLEST), _TILE_RANKS)
