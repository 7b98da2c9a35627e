"""Which replica holds which cached blocks: the router's own, in-memory answer.

A block hash names its whole prefix, so a prompt's leading cached blocks are found by walking its
hashes until nobody is left who has all of them so far. Each hash maps to a bit mask of holders:
the walk keeps a mask of replicas that are still in, and ends when it is empty. Most blocks of a
long prompt change nothing in that mask, so it is taken a chunk at a time, in calls that loop in C;
only a chunk in which somebody drops out is looked at block by block. (A binary search for each
replica's depth would be wrong where a prefix has a hole, as it has after entries were refused.)

Besides what replicas report there are speculative entries: a prompt that was just routed will be
cached there in a moment, and the next requests of a burst should know. They expire by themselves.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import accumulate, repeat
from operator import and_
from typing import Protocol

# Measured with CPython 3.11: hash object, its dictionary entry, one entry in the holder's set.
BYTES_PER_ENTRY = 220
DEFAULT_BUDGET_BYTES = 2 * 2**30
SPECULATION_S = 5.0
_CHUNK = 64


class PrefixIndex(Protocol):
    """Holders are named by their incarnation."""

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Leading blocks of `hashes` that each holder has; holders of none are left out."""

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
        self._held: dict[str, set[bytes]] = {}
        self._guesses: dict[str, dict[bytes, float]] = {}  # holder -> hash -> end
        self._ends: deque[tuple[float, str, tuple[bytes, ...]]] = deque()
        self.num_entries = 0

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        self._expire()
        depths: dict[str, int] = {}
        lookup = self._masks.get
        alive = -1  # every bit
        for start in range(0, len(hashes), _CHUNK):
            masks = list(map(lookup, hashes[start : start + _CHUNK], repeat(0)))
            if reduce(and_, masks, alive) == alive:
                continue
            for depth, left in enumerate(accumulate(masks, and_, initial=alive), start - 1):
                if left == alive:
                    continue
                if depth:
                    self._note(depths, alive & ~left, depth)
                if not left:
                    return depths
                alive = left
        if hashes:
            self._note(depths, alive, len(hashes))
        return depths

    def add(self, holder: str, hashes: Iterable[bytes]) -> None:
        bit = self._bit(holder)
        held = self._held[holder]
        for block_hash in hashes:
            if block_hash in held or not self._budget.take():
                continue
            held.add(block_hash)
            self._mark(block_hash, bit)
            self.num_entries += 1

    def remove(self, holder: str, hashes: Iterable[bytes]) -> None:
        bit = self._bits.get(holder)
        if bit is None:
            return
        held, guesses = self._held[holder], self._guesses[holder]
        for block_hash in hashes:
            if block_hash in held:
                held.remove(block_hash)
                self._count_down(1)
                if block_hash not in guesses:
                    self._unmark(block_hash, bit)

    def clear(self, holder: str) -> None:
        bit = self._bits.get(holder)
        if bit is None:
            return
        held, guesses = self._held[holder], self._guesses[holder]
        for block_hash in held | guesses.keys():
            self._unmark(block_hash, bit)
        self._count_down(len(held))
        self._held[holder], self._guesses[holder] = set(), {}

    def speculate(self, holder: str, hashes: Iterable[bytes]) -> None:
        bit = self._bit(holder)
        end = self._clock() + self._speculation_s
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
            for block_hash in held | self._guesses[holder].keys():
                masks[block_hash] = masks.get(block_hash, 0) | self._bits[holder]
        assert masks == self._masks
        assert self.num_entries == sum(map(len, self._held.values()))
        assert self.num_entries <= self._budget.num_entries <= self._budget.max_entries
        assert {bit: holder for holder, bit in self._bits.items()} == self._names

    def _bit(self, holder: str) -> int:
        bit = self._bits.get(holder)
        if bit is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            self._bits[holder] = bit
            self._names[bit] = holder
            self._held[holder], self._guesses[holder] = set(), {}
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
        while mask > 0:
            bit = mask & -mask
            depths[self._names[bit]] = depth
            mask ^= bit

    def _expire(self) -> None:
        """Guesses of a holder that was dropped meanwhile are gone; newer ones have later ends."""
        now = self._clock()
        while self._ends and self._ends[0][0] <= now:
            _, holder, hashes = self._ends.popleft()
            guesses = self._guesses.get(holder)
            if not guesses:
                continue
            bit, held = self._bits[holder], self._held[holder]
            for block_hash in hashes:
                if guesses.get(block_hash, now + 1) <= now:
                    del guesses[block_hash]
                    if block_hash not in held:
                        self._unmark(block_hash, bit)
