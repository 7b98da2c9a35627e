"""Adapters' matrices beside the layers that they change, and which of them a step's rows use.

Layers hold a `LayerAdapters`, all of one model with the same `StepAdapters`, which the runner sets
before each step. A step without adapters runs as if there were none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from octavo_kernels.lora import (
    ANY_ROWS,
    LoRAPart,
    LoRARows,
    LoRASlots,
    add_lora,
    add_lora_embedding,
)
from octavo_runtime.config import LoRAConfig
from octavo_runtime.lora.adapter import LoRAAdapter

# Rows of a GPU's tile: few, as most decodes have neighbours with other adapters; with prompts more,
# so that fewer programs read an adapter again.
DECODE_TILE = 4
MIXED_TILE = 64


@dataclass(slots=True)
class StepAdapters:
    """rows: those of the layers' next input that have an adapter; None: none has."""

    rows: LoRARows | None = None


class LayerAdapters:
    """Slots of one layer."""

    def __init__(self, slots: LoRASlots, step: StepAdapters) -> None:
        self.slots = slots
        self._step = step

    @property
    def is_used(self) -> bool:
        return self._step.rows is not None

    def add(self, y: Tensor, x: Tensor) -> None:
        """To the layer's output y of its input x, in place."""
        if self._step.rows is not None:
            add_lora(y, x, self.slots, self._step.rows)

    def add_embedding(self, y: Tensor, token_ids: Tensor) -> None:
        if self._step.rows is not None:
            add_lora_embedding(y, token_ids, self.slots, self._step.rows)


@runtime_checkable
class AdaptableLayer(Protocol):
    """adapters: None until a runner makes room for them."""

    adapters: LayerAdapters | None

    def adapter_parts(self, prefix: str) -> Mapping[str, int]:
        """Rows of each matrix that adapters may change, by the matrix's name without `.weight`;
        `prefix` is the parent module's.
        """

    @property
    def adapter_inputs(self) -> int:
        """Columns of these matrices."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix is: its layer and the part there."""

    slots: LoRASlots
    part: int


class ModelAdapters:
    """The slots of a whole model.

    targets: (out_features, in_features) of each matrix that adapters may change, by its name.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LoRAConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.step = StepAdapters()
        layers = [
            (layer, parts)
            for prefix, layer in _adaptable_layers(model)
            if (parts := _wanted(layer.adapter_parts(prefix), config.target_modules))
        ]
        most_parts = max((len(parts) for _, parts in layers), default=0)
        # Of all layers in one tensor, so that an adapter's ranks are one copy.
        ranks = torch.zeros(config.max_loras, len(layers), most_parts, dtype=torch.int32)
        self._ranks_host, self._ranks = ranks.numpy(), ranks.to(device)
        self._places: dict[str, _Place] = {}
        for index, (layer, parts) in enumerate(layers):
            slots = LoRASlots.new(
                self._ranks[:, index],
                self._ranks_host[:, index],
                list(parts.values()),
                max_rank=config.max_lora_rank,
                in_features=layer.adapter_inputs,
                dtype=dtype,
            )
            layer.adapters = LayerAdapters(slots, self.step)
            self._places |= {name: _Place(slots, part) for part, name in enumerate(parts)}
        self.targets: Mapping[str, tuple[int, int]] = {
            name: (place.slots.parts[place.part].size, place.slots.a.shape[-1])
            for name, place in self._places.items()
        }

    def set(self, slot: int, adapter: LoRAAdapter | None) -> None:
        """Puts `adapter` in place of what was in the slot; None empties it.

        In the order of the current stream. The adapter's matrices fit `targets` and max_lora_rank.
        """
        modules = {} if adapter is None else adapter.modules
        self._ranks_host[slot] = 0
        for name, matrices in modules.items():
            place = self._places[name]
            place.slots.write(slot, place.part, matrices.a, matrices.b)
            place.slots.ranks_host[slot, place.part] = len(matrices.a)
        self._ranks[slot].copy_(torch.from_numpy(self._ranks_host[slot]), non_blocking=True)

    def use(self, slots: Sequence[int], lens: Sequence[int] | None = None) -> None:
        """Of the layers' next inputs. See `LoRARows.of`."""
        device = self._ranks.device
        tile_rows = ANY_ROWS
        if device.type == "cuda":
            tile_rows = DECODE_TILE if lens is None else MIXED_TILE
        self.step.rows = LoRARows.of(slots, lens, device=device, tile_rows=tile_rows)

    def use_for_logits(self, slots: Sequence[int]) -> None:
        """`use`, where an adapter of these changes the output matrix: few do."""
        head = self._places.get("lm_head")
        used = [slot for slot in slots if slot >= 0]
        if head is not None and head.slots.ranks_host[used].any():
            self.use(slots)
        else:
            self.step.rows = None


def _adaptable_layers(model: nn.Module) -> Iterator[tuple[str, AdaptableLayer]]:
    """With the prefix that the checkpoint's names have there."""
    for path, module in model.named_modules():
        if isinstance(module, AdaptableLayer):
            parent = path.rpartition(".")[0]
            yield f"{parent}." if parent else "", module


def _wanted(sizes: Mapping[str, int], targets: Sequence[str] | None) -> dict[str, LoRAPart]:
    """The matrices that adapters may change, with their columns of the layer's output."""
    parts, first = {}, 0
    for name, size in sizes.items():
        if targets is None or name.rpartition(".")[2] in targets:
            parts[name] = LoRAPart(first, size)
        first += size
    return parts
