"""An adapter on its way from rank 0 to all ranks, each of which keeps its shards.

    y = x Wᵀ + (x Aᵀ) Bᵀ     W by rows: A whole, B by rows     W by columns: A by columns, B whole

What a rank adds where W is divided by columns is summed with its part of x Wᵀ.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from octavo_runtime.lora.adapter import LoRAAdapter, LoRAMatrices
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import Group
from octavo_runtime.parallel.shards import ModelShards
from octavo_runtime.worker.model_runner import ModelRunner


class AdapterShare:
    """One rank's end. All ranks `put` the same, in the same order.

    targets: (out_features, in_features) of the whole matrices that adapters may change.
    """

    def __init__(self, runner: ModelRunner, model_config: ModelConfig, group: Group) -> None:
        self._runner = runner
        self._group = group
        self._shards = ModelShards(model_config, group.rank, group.size)
        self.targets: Mapping[str, tuple[int, int]] = {
            name: self._whole_shape(name, shape) for name, shape in runner.adapter_targets.items()
        }

    def put(
        self, slot: int, lora_ranks: Mapping[str, int] | None, adapter: LoRAAdapter | None = None
    ) -> None:
        """`set_adapter` of the runner, with this rank's shards. On a GPU nothing is waited for.

        lora_ranks: of the adapter's matrices; None empties the slot. adapter: on rank 0.
        """
        if lora_ranks is None:
            self._runner.set_adapter(slot, None)
            return
        memory, modules = self._room_for(lora_ranks)
        if adapter is not None:
            for name, room in modules.items():
                room.a.copy_(adapter.modules[name].a, non_blocking=True)
                room.b.copy_(adapter.modules[name].b, non_blocking=True)
        self._group.broadcast(memory)
        shards = {name: self._shard(name, whole) for name, whole in modules.items()}
        self._runner.set_adapter(slot, LoRAAdapter("", "", max(lora_ranks.values()), shards))

    def _room_for(self, lora_ranks: Mapping[str, int]) -> tuple[Tensor, dict[str, LoRAMatrices]]:
        """Memory on the device, in one piece, and the whole matrices in it."""
        shapes = []
        for name, lora_rank in lora_ranks.items():
            out_features, in_features = self.targets[name]
            shapes += [(lora_rank, in_features), (out_features, lora_rank)]
        sizes = [prod(shape) for shape in shapes]
        memory = torch.empty(
            sum(sizes), dtype=self._runner.adapter_dtype, device=self._runner.device
        )
        pieces: list[Tensor] = list(memory.split(sizes))  # type: ignore[no-untyped-call]
        rooms = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        pairs = zip(rooms[::2], rooms[1::2], strict=True)
        return memory, {
            name: LoRAMatrices(a, b) for name, (a, b) in zip(lora_ranks, pairs, strict=True)
        }

    def _whole_shape(self, name: str, shape: tuple[int, int]) -> tuple[int, int]:
        shard = self._shards.of_module(name)
        rows, columns = shape if shard is None else shard.whole_shape(shape)
        return rows, columns

    def _shard(self, name: str, whole: LoRAMatrices) -> LoRAMatrices:
        shard = self._shards.of_module(name)
        if shard is None:
            return whole
        if shard.dim == 0:
            return LoRAMatrices(whole.a, whole.b[shard.index])
        return LoRAMatrices(whole.a[shard.index], whole.b)
