"""Results that are kept for as long as there is room, those used last the longest."""

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

_V = TypeVar("_V")
# A key of 16 bytes, its entry in the table and the objects around the value, as measured.
_ENTRY_BYTES = 400


class BoundedMemo(Generic[_V]):
    """Values by digests of what they were computed from. Thread-safe.

    budget_bytes: of all entries together, by estimate. num_bytes: what they take now.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[bytes, tuple[_V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> _V | None:
        """The value, which counts as used now."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: bytes, value: _V, num_bytes: int) -> None:
        """Keeps `value`, which takes `num_bytes`; what was used longest ago makes room.

        A value that would take more than a quarter of the budget is not kept.
        """
        size = num_bytes + _ENTRY_BYTES
        if size > self.budget_bytes // 4:
            return
        with self._lock:
            _, old_size = self._entries.pop(key, (None, 0))
            self._entries[key] = (value, size)
            self.num_bytes += size - old_size
            while self.num_bytes > self.budget_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self.num_bytes -= freed
