"""Low-rank additions from torch operators: two products for each slot and part, of its own rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from octavo_kernels.lora import LoRASlots

Tiles = Iterable[list[int]]


def add_lora(y: Tensor, x: Tensor, slots: LoRASlots, order: Tensor, tiles: Tiles) -> None:
    for slot, where in _groups(order, tiles):
        mine = x[where].to(slots.a.dtype)
        for index, part in enumerate(slots.parts):
            if rank := int(slots.ranks_host[slot, index]):
                shrunk = mine @ slots.a[slot, index, :rank].T
                _expand(y, where, shrunk, slots, slot, index, part.first)


def add_lora_embedding(
    y: Tensor, token_ids: Tensor, slots: LoRASlots, order: Tensor, tiles: Tiles
) -> None:
    for slot, where in _groups(order, tiles):
        if rank := int(slots.ranks_host[slot, 0]):
            picked = slots.a[slot, 0, :rank].index_select(1, token_ids[where]).T
            _expand(y, where, picked, slots, slot, 0, 0)


def _groups(order: Tensor, tiles: Tiles) -> Iterator[tuple[int, slice | Tensor]]:
    """Each slot with its rows; as a view where they lie side by side."""
    for slot, first, end in tiles:
        if first == end:
            continue
        mine = order[first:end]
        start, stop = int(mine[0]), int(mine[-1]) + 1
        yield slot, slice(start, stop) if stop - start == end - first else mine.long()


def _expand(
    y: Tensor,
    where: slice | Tensor,
    shrunk: Tensor,
    slots: LoRASlots,
    slot: int,
    part: int,
    first: int,
) -> None:
    b = slots.b[slot, : shrunk.shape[1], slots.columns(part)]
    y[where, first : first + slots.parts[part].size] += (shrunk @ b).to(y.dtype)
