from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo_kernels.lora import LoRARows, LoRASlots


def add_lora(y: Tensor, x: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    for slot, first, end in rows.tiles.tolist():
        for row in rows.order[first:end].tolist():
            for index, part in enumerate(slots.parts):
                rank = int(slots.ranks[slot, index])
                a = slots.a[slot, index, :rank].float()
                b = slots.b[slot, :rank, slots.columns(index)].float()
                target = y[row, part.first : part.first + part.size]
                target.copy_(target.float() + x[row].float() @ a.T @ b)


def add_lora_embedding(y: Tensor, token_ids: Tensor, slots: LoRASlots, rows: LoRARows) -> None:
    one_hot = torch.nn.functional.one_hot(token_ids, slots.a.shape[-1])
    add_lora(y, one_hot, slots, rows)
