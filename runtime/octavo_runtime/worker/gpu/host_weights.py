"""A model's weights, and the adapters beside them, in host memory while the engine sleeps."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from octavo_kernels.linear import PackedWeight
from octavo_runtime.layers.lora import LayerAdapters


class HostWeights:
    """Moves the weights of `model` off its device; the tensors stay, without memory of their own.

    Storages are moved, so that tensors that share one share it afterwards too.
    """

    def __init__(self, model: nn.Module) -> None:
        storages = {s.data_ptr(): s for s in map(Tensor.untyped_storage, _tensors(model))}
        self._copies = []
        for storage in storages.values():
            self._copies.append((storage, torch.UntypedStorage(storage.nbytes()).copy_(storage)))  # type: ignore[no-untyped-call]
            storage.resize_(0)

    def restore(self) -> None:
        """Brings them back, to other addresses. Raises torch.OutOfMemoryError; may be repeated."""
        for storage, copy in self._copies:
            storage.resize_(copy.nbytes())
            storage.copy_(copy)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)
        for value in vars(module).values():
            if isinstance(value, PackedWeight):
                yield value.data
                if value.arrivals is not None:
                    yield value.arrivals
            elif isinstance(value, LayerAdapters):
                yield from (value.slots.a, value.slots.b)
            elif isinstance(value, Tensor):
                yield value
