"""Which replica holds which cached blocks: the router's own, in-memory answer.

A block hash names its whole prefix, and caches drop the ends of prompts before their beginnings:
whoever has a block has, as a rule, all before it. So how far a replica's prefix reaches is found by
binary search: a prompt of thousands of blocks costs some dozens of look-ups, not thousands. Each
hash maps to a bit mask of holders, so that those who reach equally far share one search.

Where a prefix has a hole the answer is a block that the replica has and whose next it lacks: never
less than its leading blocks, but maybe more. Two cases are right all the same: an entry that was
refused for lack of room, and a guess whose beginning was evicted (it will be computed again). One
is an error, an evicted block whose child is left: replicas evict in the other order, save for a
block that two sequences computed at once. `PredictionTrust` notices a replica that falls short.

Besides what replicas report there are speculative entries: a prompt that was just routed will be
cached there in a moment, and the next requests of a burst should know. They expire by themselves:
as new ones are entered, so that look-ups need not wait for it, unless nothing was for a while.
"""

import math
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

# Resident memory with CPython 3.11 and 10 million entries: benchmarks/router_decisions.py.
BYTES_PER_ENTRY = 175
DEFAULT_BUDGET_BYTES = 2 * 2**30
SPECULATION_S = 5.0
_OVERDUE_S = 0.5


class PrefixIndex(Protocol):
    """Holders are named by their incarnation."""

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of `hashes` that each holder has; who lacks the first is left out.

        Past a hole in a holder's prefix it may be more: see the module.
        """

    def add(self, holder: str, hashes: Iterable[bytes]) -> None:
        """`holder` reported that it stored these blocks."""

    def remove(self, holder: str, hashes: Iterable[bytes]) -> None:
        """`holder` reported that it evicted these blocks."""

    def clear(self, holder: str) -> None:
        """`holder` holds nothing now."""

    def speculate(self, holder: str, hashes: Iterable[bytes]) -> None:
        """`holder` was just sent a prompt with these blocks."""

    def drop(self, holder: str) -> None:
        """`holder` is gone."""


class IndexBudget:
    """The room that indexes share, in entries.

    At the bound new entries are not taken (`num_refused` counts them): routing loses hits, nothing
    else.
    """

    def __init__(self, num_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self.max_entries = max(1, num_bytes // BYTES_PER_ENTRY)
        self.num_entries = 0
        self.num_refused = 0

    @property
    def num_bytes(self) -> int:
        """Estimated size of what replicas reported."""
        return self.num_entries * BYTES_PER_ENTRY

    def take(self) -> bool:
        """Room for one entry, if there is."""
        if self.num_entries >= self.max_entries:
            self.num_refused += 1
            return False
        self.num_entries += 1
        return True


class MemoryPrefixIndex:
    """A `PrefixIndex` in this process. budget: shared with other indexes; None = one of its own."""

    def __init__(
        self,
        *,
        budget: IndexBudget | None = None,
        speculation_s: float = SPECULATION_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget or IndexBudget()
        self._speculation_s = speculation_s
        self._clock = clock
        self._bits: dict[str, int] = {}  # holder -> its bit
        self._names: dict[int, str] = {}  # bit -> holder
        self._masks: dict[bytes, int] = {}  # who holds it, by report or by speculation
        # A dictionary in place of a set: the garbage collector does not walk one of plain bytes.
        self._held: dict[str, dict[bytes, None]] = {}
        self._guesses: dict[str, dict[bytes, float]] = {}  # holder -> hash -> end
        self._ends: deque[tuple[float, str, tuple[bytes, ...]]] = deque()
        self.num_entries = 0

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        self._expire(self._clock() - _OVERDUE_S)
        depths: dict[str, int] = {}
        alive = self._holders(hashes, 0)
        depth = 0
        while alive:
            depth = self._first_lacked(hashes, alive, depth + 1)
            left = alive & self._holders(hashes, depth)
            self._note(depths, alive & ~left, depth)
            alive = left
        return depths

    def add(self, holder: str, hashes: Iterable[bytes]) -> None:
        bit = self._bit(holder)
        held = self._held[holder]
        for block_hash in hashes:
            if block_hash in held or not self._budget.take():
                continue
            held[block_hash] = None
            self._mark(block_hash, bit)
            self.num_entries += 1

    def remove(self, holder: str, hashes: Iterable[bytes]) -> None:
        bit = self._bits.get(holder)
        if bit is None:
            return
        held, guesses = self._held[holder], self._guesses[holder]
        for block_hash in hashes:
            if block_hash in held:
                del held[block_hash]
                self._count_down(1)
                if block_hash not in guesses:
                    self._unmark(block_hash, bit)

    def clear(self, holder: str) -> None:
        bit = self._bits.get(holder)
        if bit is None:
            return
        held, guesses = self._held[holder], self._guesses[holder]
        for block_hash in held.keys() | guesses.keys():
            self._unmark(block_hash, bit)
        self._count_down(len(held))
        self._held[holder], self._guesses[holder] = {}, {}

    def speculate(self, holder: str, hashes: Iterable[bytes]) -> None:
        now = self._clock()
        self._expire(now)
        bit, end = self._bit(holder), now + self._speculation_s
        entered = tuple(hashes)
        self._guesses[holder].update(dict.fromkeys(entered, end))
        self._ends.append((end, holder, entered))
        for block_hash in entered:
            self._mark(block_hash, bit)

    def drop(self, holder: str) -> None:
        self.clear(holder)
        bit = self._bits.pop(holder, None)
        if bit is not None:
            del self._held[holder], self._guesses[holder], self._names[bit]

    def check(self) -> None:
        """Asserts that the tables agree. For tests."""
        masks: dict[bytes, int] = {}
        for holder, held in self._held.items():
            for block_hash in held.keys() | self._guesses[holder].keys():
                masks[block_hash] = masks.get(block_hash, 0) | self._bits[holder]
        assert masks == self._masks
        assert self.num_entries == sum(map(len, self._held.values()))
        assert self.num_entries <= self._budget.num_entries <= self._budget.max_entries
        assert {bit: holder for holder, bit in self._bits.items()} == self._names

    def _holders(self, hashes: Sequence[bytes], at: int) -> int:
        return self._masks.get(hashes[at], 0) if at < len(hashes) else 0

    def _first_lacked(self, hashes: Sequence[bytes], holders: int, start: int) -> int:
        """Where a block is, from `start` on, that one of `holders` lacks; the end, if none is."""
        lookup = self._masks.get

        def is_lacked(at: int) -> bool:
            return holders & ~lookup(hashes[at], 0) != 0

        return bisect_left(range(len(hashes)), True, lo=start, key=is_lacked)

    def _bit(self, holder: str) -> int:
        bit = self._bits.get(holder)
        if bit is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            self._bits[holder] = bit
            self._names[bit] = holder
            self._held[holder], self._guesses[holder] = {}, {}
        return bit

    def _mark(self, block_hash: bytes, bit: int) -> None:
        mask = self._masks.get(block_hash)
        if mask is None:
            self._masks[block_hash] = bit  # one object for all blocks that only this holder has
        elif not mask & bit:
            self._masks[block_hash] = mask | bit

    def _unmark(self, block_hash: bytes, bit: int) -> None:
        mask = self._masks[block_hash] & ~bit
        if mask:
            self._masks[block_hash] = mask
        else:
            del self._masks[block_hash]

    def _count_down(self, num_entries: int) -> None:
        self.num_entries -= num_entries
        self._budget.num_entries -= num_entries

    def _note(self, depths: dict[str, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            depths[self._names[bit]] = depth
            mask ^= bit

    def _expire(self, until: float) -> None:
        """Guesses of a holder that was dropped meanwhile are gone; newer ones have later ends."""
        while self._ends and self._ends[0][0] <= until:
            _, holder, hashes = self._ends.popleft()
            guesses = self._guesses.get(holder)
            if not guesses:
                continue
            bit, held = self._bits[holder], self._held[holder]
            for block_hash in hashes:
                if guesses.get(block_hash, math.inf) <= until:
                    del guesses[block_hash]
                    if block_hash not in held:
                        self._unmark(block_hash, bit)
