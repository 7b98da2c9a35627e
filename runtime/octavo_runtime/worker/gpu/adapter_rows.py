"""Which rows of a GPU's step have which adapter, in memory that stays in place for graphs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo_kernels.lora import LoRARows, group_rows, max_tiles
from octavo_runtime.layers.lora import DECODE_TILE
from octavo_runtime.worker.gpu.staging import StepStaging


class AdapterRows:
    """num_slots: 0 = no step has adapters."""

    def __init__(self, staging: StepStaging, num_slots: int) -> None:
        self._staging = staging
        self._num_slots = num_slots

    @staticmethod
    def most_tiles(num_tokens: int, num_slots: int) -> int:
        """Room that `staging` needs, of a step of any kind with so many tokens."""
        return max_tiles(num_tokens, num_slots, DECODE_TILE) if num_slots else 0

    def empty(self, num_rows: int, tile_rows: int) -> LoRARows:
        """As many tiles as `num_rows` may have, for a graph of it."""
        count = max_tiles(num_rows, self._num_slots, tile_rows)
        return self._of(num_rows, tile_rows, [[0, 0, 0]] * count)

    def no_tiles(self) -> dict[str, NDArray[np.int32]]:
        """To be sent before steps of `empty`."""
        return {"lora_tiles": np.zeros(self._staging.lora_tiles.numel(), dtype=np.int32)}

    def group(
        self, slots: Sequence[int], lens: Sequence[int], num_rows: int, tile_rows: int
    ) -> tuple[LoRARows, dict[str, NDArray[np.int32]]]:
        """Of a step that is padded to `num_rows`, and what is to be sent for it.

        slots, lens: of each sequence.
        """
        order, tiles = group_rows(slots, lens, tile_rows=tile_rows)
        padded = np.zeros((max_tiles(num_rows, self._num_slots, tile_rows), 3), dtype=np.int32)
        padded[: len(tiles)] = tiles
        rows = self._of(num_rows, tile_rows, padded.tolist())
        return rows, {"lora_order": order, "lora_tiles": padded.ravel()}

    def _of(self, num_rows: int, tile_rows: int, tiles: list[list[int]]) -> LoRARows:
        staging = self._staging
        return LoRARows(
            staging.lora_order[:num_rows], staging.lora_tiles[: len(tiles)], tiles, tile_rows
        )
