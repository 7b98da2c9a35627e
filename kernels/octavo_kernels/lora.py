"""Low-rank additions to linear layers, of many adapters in one batch.

    y[row] += (x[row] Aᵀ) Bᵀ          A and B of the adapter in the row's slot

Source: Hu et al. 2021, "LoRA", §4.1; rows of many adapters together: Chen et al. 2023, "Punica".
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import gcd

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo_kernels.backend import CpuBackend, cpu_backend
from octavo_kernels.cpu import torch_lora

# More rows of one adapter are left to blocked products, which read its matrices less often.
FEW_ROWS = 16
ANY_ROWS = 1 << 30
CPU_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class LoRAPart:
    """`size` columns of y, from `first` on, that have an A and a B of their own."""

    first: int
    size: int


@dataclass(frozen=True, eq=False)
class LoRASlots:
    """Adapters' matrices for one layer, whose output may have several parts.

    a:      [num_slots, num_parts, max_rank, in_features]
    b:      [num_slots, max_rank, sum of the parts' sizes], each Bᵀ with its scaling, side by side
    ranks:  [num_slots, num_parts] int32; what lies beyond a rank is never read; 0: nothing is added
    ranks_host: the same on the host, kept equal by whoever changes them
    part_columns: [num_parts, 3] int32, for a GPU: the first column in y and in `b`, how many
    alignment: divides all of `part_columns`, up to 16
    """

    a: Tensor
    b: Tensor
    ranks: Tensor
    ranks_host: npt.NDArray[np.int32]
    parts: tuple[LoRAPart, ...]
    part_columns: Tensor
    alignment: int

    @classmethod
    def new(
        cls,
        ranks: Tensor,
        ranks_host: npt.NDArray[np.int32],
        parts: Sequence[LoRAPart],
        *,
        max_rank: int,
        in_features: int,
        dtype: torch.dtype,
    ) -> LoRASlots:
        """On the device of `ranks`. A CPU commits memory only to what is written."""
        num_slots, width = len(ranks), sum(part.size for part in parts)
        in_b = accumulate((part.size for part in parts), initial=0)
        columns = [(part.first, at, part.size) for part, at in zip(parts, in_b, strict=False)]
        return cls(
            a=torch.zeros(
                (num_slots, len(parts), max_rank, in_features), dtype=dtype, device=ranks.device
            ),
            b=torch.zeros((num_slots, max_rank, width), dtype=dtype, device=ranks.device),
            ranks=ranks,
            ranks_host=ranks_host,
            parts=tuple(parts),
            part_columns=torch.tensor(columns, dtype=torch.int32, device=ranks.device),
            alignment=gcd(16, *chain.from_iterable(columns)),
        )

    @cached_property
    def cpu_layout(self) -> array[int] | None:
        """What the compiled kernel is told of the layer; None where it cannot read it."""
        from octavo_kernels.cpu import lora as cpu

        return cpu.layout_of(self) if cpu.can_read(self) else None

    def write(self, slot: int, part: int, a: Tensor, b: Tensor) -> None:
        """Fills one part of a slot; its rank is the caller's. a: [rank, in_features]; b:
        [size, rank], with its scaling. Asynchronous where they are pinned and the slots on a GPU.
        """
        rank = len(a)
        self.a[slot, part, :rank].copy_(a, non_blocking=True)
        on_device = b.to(self.b.device, non_blocking=True)
        self.b[slot, :rank, self.columns(part)].copy_(on_device.T)

    def columns(self, part: int) -> slice:
        """Where `b` holds the part."""
        first = sum(each.size for each in self.parts[:part])
        return slice(first, first + self.parts[part].size)


@dataclass(frozen=True, eq=False)
class LoRARows:
    """The rows of a batch that have an adapter, by its slot.

        slots   2 -1  0  2  0          order   2 4 0 3      tiles   (0, 0, 2) (2, 2, 4)

    order: [n] int32, row numbers; ascending within a slot. What no tile covers is undefined.
    tiles: [num_tiles, 3] int32: a slot, and the first place in `order` and the one after the last;
    those without rows are padding. tiles_host: the same on the host; in a graph any that are as
    many. tile_rows: most rows of a tile.
    """

    order: Tensor
    tiles: Tensor
    tiles_host: list[list[int]]
    tile_rows: int

    @cached_property
    def large_tiles(self) -> list[list[int]]:
        """Of `tiles_host` those of more than FEW_ROWS."""
        return [tile for tile in self.tiles_host if tile[2] - tile[1] > FEW_ROWS]

    @classmethod
    def of(
        cls,
        slots: Sequence[int],
        lens: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
        tile_rows: int = ANY_ROWS,
    ) -> LoRARows | None:
        """None where no row has an adapter.

        slots: of each sequence, -1 without an adapter; lens: rows of each, 1 by default.
        """
        order, tiles = group_rows(slots, lens, tile_rows=tile_rows)
        if len(tiles) == 0:
            return None
        return cls(
            torch.from_numpy(order).to(device),
            torch.from_numpy(tiles).to(device),
            tiles.tolist(),
            tile_rows,
        )


def max_tiles(num_rows: int, num_slots: int, tile_rows: int) -> int:
    """The most tiles that so many rows can have."""
    return min(num_rows, num_slots + num_rows // tile_rows)


def group_rows(
    slots: Sequence[int], lens: Sequence[int] | None = None, *, tile_rows: int = ANY_ROWS
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """`order` and `tiles` of `LoRARows`. tile_rows: of a tile, at most."""
    slot = np.asarray(slots, dtype=np.int64)
    length = np.ones_like(slot) if lens is None else np.asarray(lens, dtype=np.int64)
    start = np.cumsum(length) - length
    by_slot = np.argsort(slot, kind="stable")
    by_slot = by_slot[slot[by_slot] >= 0]
    slot, length, start = slot[by_slot], length[by_slot], start[by_slot]
    total = int(length.sum())
    order = np.arange(total) + np.repeat(start - (np.cumsum(length) - length), length)
    sizes = np.bincount(slot, weights=length).astype(np.int64)
    num_tiles = -(-sizes // tile_rows)
    owner = np.repeat(np.arange(len(sizes)), num_tiles)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    end = np.cumsum(sizes)
    first = (end - sizes)[owner] + nth * tile_rows
    tiles = np.stack([owner, first, np.minimum(first + tile_rows, end[owner])], axis=1)
    return order.astype(np.int32), tiles.astype(np.int32)


def add_lora(y: Tensor, x: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """Adds to `y`, in place, what the adapters of its rows make of `x`.

    Sums in fp32; x Aᵀ may be rounded to the matrices' dtype, as PEFT does.

    y: [num_rows, out_features]; x: [num_rows, in_features]; both contiguous.
    """
    if y.is_cuda:
        from octavo_kernels.gpu import lora as gpu

        gpu.add_lora(y, x, slots, rows)
        return
    tiles = rows.tiles_host
    if _is_for_numba(y, x) and (layout := slots.cpu_layout) is not None:
        from octavo_kernels.cpu import lora as cpu

        cpu.add_lora(y, x, layout, slots.a.dtype, rows)
        tiles = rows.large_tiles
    if tiles:
        torch_lora.add_lora(y, x, slots, rows.order, tiles)


def _is_for_numba(y: Tensor, x: Tensor) -> bool:
    return (
        cpu_backend() is CpuBackend.NUMBA
        and x.device.type == "cpu"
        and x.dtype in CPU_DTYPES
        and y.dtype == x.dtype
    )


def add_lora_embedding(y: Tensor, token_ids: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    """`add_lora` where x would be the one-hot rows of tokens: A's columns are picked.

    y: [num_rows, hidden_size]; token_ids: [num_rows] int64. slots: of one part.
    """
    if y.is_cuda:
        from octavo_kernels.gpu import lora as gpu

        gpu.add_lora_embedding(y, token_ids, slots, rows)
    else:
        torch_lora.add_lora_embedding(y, token_ids, slots, rows.order, rows.tiles_host)
