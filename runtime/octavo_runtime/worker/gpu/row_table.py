"""Which row of the device's `SequenceRows` belongs to which sequence. No torch."""

from collections.abc import Iterable, Sequence


class RowTable:
    """A sequence has a row from its first step until it is released.

    A row that was released may be given away while a step with its old owner still runs: the next
    step runs after that one.
    """

    def __init__(self, num_rows: int) -> None:
        self._free = list(range(num_rows - 1, -1, -1))
        self._rows: dict[str, int] = {}
        self._num_blocks = [0] * num_rows

    def row(self, key: str) -> int:
        """The row of `key`, a new one if it has none. Raises IndexError when all are taken."""
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = self._free.pop()
            self._num_blocks[row] = 0
        return row

    def new_blocks(self, row: int, block_table: Sequence[int]) -> tuple[int, Sequence[int]]:
        """(place of the first, blocks) of the table that the device does not hold yet."""
        known = self._num_blocks[row]
        self._num_blocks[row] = len(block_table)
        return known, block_table[known:]

    def release(self, keys: Iterable[str]) -> None:
        """Frees rows. Keys without one are ignored."""
        for key in keys:
            row = self._rows.pop(key, None)
            if row is not None:
                self._free.append(row)
