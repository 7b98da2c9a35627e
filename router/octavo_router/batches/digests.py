"""A set of texts that is only asked whether a text is new, in 16 to 32 bytes a text."""

import hashlib
from array import array

_FIRST_SIZE = 1024


class DigestSet:
    """Keeps 8 bytes of each text's BLAKE2 in a table with open addressing, half of it empty.

    Of a million texts, two are taken for one with a probability below 1 in 10 million.
    """

    def __init__(self) -> None:
        self._num_kept = 0
        self._table = array("Q", bytes(8 * _FIRST_SIZE))

    def add(self, text: str) -> bool:
        """False where it was there already."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if not self._put(int.from_bytes(digest, "little") or 1):  # 0: an empty place
            return False
        self._num_kept += 1
        if 2 * self._num_kept > len(self._table):
            self._grow()
        return True

    def _put(self, value: int) -> bool:
        table, last = self._table, len(self._table) - 1
        place = value & last
        while table[place]:
            if table[place] == value:
                return False
            place = (place + 1) & last
        table[place] = value
        return True

    def _grow(self) -> None:
        values = self._table
        self._table = array("Q", bytes(16 * len(values)))
        for value in values:
            if value:
                self._put(value)
