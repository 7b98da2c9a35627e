"""What a step sends to the device: written to pinned memory, then copied asynchronously.

All arrays of a step lie in one piece of memory, at the same places in every step, so that a CUDA
graph finds them; what every step has comes first and is one copy.

    | rows starts query_start_loc … temperature top_k … | blocks ……… | tokens ……… | lora_order …
      always copied                                       as many as there are
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.step_inputs import StepChanges

# Of a step that runs, of one that waits behind it, and of the one that is being written: enough
# that `write` finds one that the device has taken already.
_NUM_COPIES = 3
_ALIGNMENT = 16
_OF_ANY_LENGTH = ("blocks", "tokens", "lora_order", "lora_tiles")
_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
}


@dataclass(frozen=True, slots=True)
class SampleInputs:
    """By sampled sequence, [max_sequences] each.

    index: int64, the hidden state that its logits come from. row: int64, its row on the device.
    temperature, top_p, min_p: fp32. top_k: int32. seed, position: int64, see `sample_tokens`.
    """

    index: Tensor
    row: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor


class StepStaging:
    """The device's arrays `changes` and `samples`, and pinned copies of them to write to.

    counts: [2] int32, see `AttentionMetadata`. lora_order: [max_tokens] int32, lora_tiles:
    [max_lora_tiles, 3] int32, see `LoRARows`; both empty where max_lora_tiles is 0.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        max_sequences: int,
        max_tokens: int,
        max_blocks: int,
        max_lora_tiles: int = 0,
    ) -> None:
        self.max_blocks = max_blocks
        of_each = max_sequences
        shapes: dict[str, tuple[type, int]] = {
            "rows": (np.int32, of_each),
            "starts": (np.int32, of_each),
            "query_start_loc": (np.int32, of_each + 1),
            "num_shared": (np.int32, of_each),
            "token_starts": (np.int32, of_each + 1),
            "block_starts": (np.int32, of_each + 1),
            "first_columns": (np.int32, of_each),
            "counts": (np.int32, 2),
            "index": (np.int64, of_each),
            "row": (np.int64, of_each),
            "temperature": (np.float32, of_each),
            "top_k": (np.int32, of_each),
            "top_p": (np.float32, of_each),
            "min_p": (np.float32, of_each),
            "seed": (np.int64, of_each),
            "position": (np.int64, of_each),
            "blocks": (np.int32, max_blocks),
            "tokens": (np.int32, max_tokens),
            "lora_order": (np.int32, max_tokens if max_lora_tiles else 0),
            "lora_tiles": (np.int32, 3 * max_lora_tiles),
        }
        self._places: dict[str, tuple[int, np.dtype[np.generic], int]] = {}
        size = 0
        for name, (dtype, length) in shapes.items():
            self._places[name] = size, np.dtype(dtype), length
            size += -(-np.dtype(dtype).itemsize * length // _ALIGNMENT) * _ALIGNMENT
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        is_gpu = device.type == "cuda"
        self._pinned = [
            torch.zeros(size, dtype=torch.uint8, pin_memory=is_gpu) for _ in range(_NUM_COPIES)
        ]
        self._hosts = [self._views(pinned) for pinned in self._pinned]
        self._taken = [torch.cuda.Event() if is_gpu else None for _ in range(_NUM_COPIES)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self.changes = StepChanges(
            **{field.name: self._on_device(field.name) for field in fields(StepChanges)}
        )
        self.counts = self._on_device("counts")
        self.lora_order = self._on_device("lora_order")
        self.lora_tiles = self._on_device("lora_tiles").view(-1, 3)
        self.samples = SampleInputs(
            **{field.name: self._on_device(field.name) for field in fields(SampleInputs)}
        )

    def write(
        self, arrays: Mapping[str, NDArray[np.integer] | Sequence[int] | Sequence[float]]
    ) -> None:
        """Copies `arrays`, by name, to the start of the device's; what else is there is undefined.

        The copy is in the order of the current stream. Returns at once, unless the device is so far
        behind that all copies are still to be taken. Not for the capture of a graph, which would
        take this copy again in every replay.
        """
        self._turn = (self._turn + 1) % _NUM_COPIES
        taken = self._taken[self._turn]
        if taken is not None:
            taken.synchronize()
        host = self._hosts[self._turn]
        for name, values in arrays.items():
            host[name][: len(values)] = values
        pinned = self._pinned[self._turn]
        always = self._places["blocks"][0]
        self._memory[:always].copy_(pinned[:always], non_blocking=True)
        for name in _OF_ANY_LENGTH:
            if num_bytes := 4 * len(arrays.get(name, ())):
                first = self._places[name][0]
                end = first + num_bytes
                self._memory[first:end].copy_(pinned[first:end], non_blocking=True)
        if taken is not None:
            taken.record()

    def _on_device(self, name: str) -> Tensor:
        first, dtype, length = self._places[name]
        raw = self._memory[first : first + dtype.itemsize * length]
        return raw.view(_TORCH_DTYPES[dtype])

    def _views(self, memory: Tensor) -> dict[str, NDArray[np.generic]]:
        raw = memory.numpy()
        return {
            name: raw[first : first + dtype.itemsize * length].view(dtype)
            for name, (first, dtype, length) in self._places.items()
        }
