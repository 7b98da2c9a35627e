"""The prefix index: which leading blocks of a prompt does each replica hold?

One dictionary maps a block hash to a bit mask of its holders, so that a look-up walks the prompt
once, whatever the number of replicas, and stops at the first block that nobody holds. Beside what
the replicas report stand guesses: prompts that were just sent somewhere count as held there for a
moment, so that a burst with one prefix stays together.

Memory has a bound. Past it further blocks are not entered; as a hash names its whole prefix, a
missing block can only make a prediction too low.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from octavo_protocol.records import BlocksRemoved, BlocksStored, CacheCleared, KVEvent, KVSnapshot

# Measured on CPython 3.11: the hash, its slot in the dictionary and its mask.
_BYTES_PER_HASH = 49 + 104 + 32
# One more slot in a holder's own set.
_BYTES_PER_HOLDING = 64
_DEFAULT_MAX_BYTES = 512 * 2**20


class PrefixIndex(Protocol):
    """What a router asks of an index. Replicas are named by their incarnation."""

    def apply(self, incarnation: str, events: Iterable[KVEvent]) -> None:
        """Takes in what changed at a replica, in order."""

    def replace(self, incarnation: str, snapshot: KVSnapshot) -> None:
        """Forgets what was known of a replica; the snapshot is all it holds."""

    def drop(self, incarnation: str) -> None:
        """Forgets a replica. Unknown ones are fine."""

    def guess(self, incarnation: str, hashes: Sequence[bytes]) -> None:
        """Counts `hashes` as held by the replica for a moment."""

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        """Number of leading blocks that each replica holds; those without any are left out."""


class MemoryPrefixIndex:
    """The index in this process. Not thread-safe: it belongs to one event loop.

    max_bytes: bound of the estimate `num_bytes`. guess_s: how long a guess counts.
    num_refused: blocks that were not entered for lack of room.
    """

    def __init__(
        self,
        *,
        max_bytes: int = _DEFAULT_MAX_BYTES,
        guess_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes = max_bytes
        self.num_refused = 0
        self._guess_s = guess_s
        self._clock = clock
        self._holders: dict[bytes, int] = {}
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._blocks: dict[str, set[bytes]] = {}
        self._num_holdings = 0
        self._guesses: dict[bytes, dict[str, float]] = {}
        self._guess_order: deque[tuple[float, str, Sequence[bytes]]] = deque()

    @property
    def num_hashes(self) -> int:
        """Distinct blocks that some replica reported."""
        return len(self._holders)

    @property
    def num_bytes(self) -> int:
        """Estimate of the memory that the reported blocks take."""
        return len(self._holders) * _BYTES_PER_HASH + self._num_holdings * _BYTES_PER_HOLDING

    def num_blocks(self, incarnation: str) -> int:
        """Blocks that the replica reported and still holds."""
        return len(self._blocks.get(incarnation, ()))

    def apply(self, incarnation: str, events: Iterable[KVEvent]) -> None:
        for event in events:
            match event:
                case BlocksStored():
                    self._store(incarnation, event.hashes)
                case BlocksRemoved():
                    self._remove(incarnation, event.hashes)
                case CacheCleared():
                    self._clear(incarnation)

    def replace(self, incarnation: str, snapshot: KVSnapshot) -> None:
        self._clear(incarnation)
        self._store(incarnation, snapshot.hashes)

    def drop(self, incarnation: str) -> None:
        self._clear(incarnation)
        self._blocks.pop(incarnation, None)
        bit = self._bits.pop(incarnation, None)
        if bit is not None:
            del self._names[bit]

    def guess(self, incarnation: str, hashes: Sequence[bytes]) -> None:
        expiry = self._clock() + self._guess_s
        self._bit(incarnation)
        for block_hash in hashes:
            self._guesses.setdefault(block_hash, {})[incarnation] = expiry
        self._guess_order.append((expiry, incarnation, hashes))

    def match(self, hashes: Sequence[bytes]) -> dict[str, int]:
        self._expire_guesses()
        matched: dict[str, int] = {}
        alive = -1  # every bit
        for depth, block_hash in enumerate(hashes):
            holders = self._holders.get(block_hash, 0)
            if self._guesses:
                holders |= self._guessed_holders(block_hash)
            still = alive & holders
            if still != alive:
                if depth:
                    self._note(matched, alive & ~still, depth)
                alive = still
                if not alive:
                    return matched
        if hashes:
            self._note(matched, alive, len(hashes))
        return matched

    def _note(self, matched: dict[str, int], mask: int, depth: int) -> None:
        while mask:
            bit = mask & -mask
            matched[self._names[bit]] = depth
            mask ^= bit

    def _bit(self, incarnation: str) -> int:
        bit = self._bits.get(incarnation)
        if bit is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            self._bits[incarnation] = bit
            self._names[bit] = incarnation
        return bit

    def _store(self, incarnation: str, hashes: Sequence[bytes]) -> None:
        bit = self._bit(incarnation)
        own = self._blocks.setdefault(incarnation, set())
        for block_hash in hashes:
            if block_hash in own:
                continue
            if self.num_bytes >= self.max_bytes:
                self.num_refused += 1
                continue
            own.add(block_hash)
            self._holders[block_hash] = self._holders.get(block_hash, 0) | bit
            self._num_holdings += 1

    def _remove(self, incarnation: str, hashes: Sequence[bytes]) -> None:
        self._forget_guesses(incarnation, hashes)
        own = self._blocks.get(incarnation)
        if not own:
            return
        bit = self._bits[incarnation]
        for block_hash in hashes:
            if block_hash not in own:
                continue
            own.remove(block_hash)
            self._num_holdings -= 1
            left = self._holders[block_hash] & ~bit
            if left:
                self._holders[block_hash] = left
            else:
                del self._holders[block_hash]

    def _clear(self, incarnation: str) -> None:
        self._remove(incarnation, list(self._blocks.get(incarnation, ())))
        kept: deque[tuple[float, str, Sequence[bytes]]] = deque()
        for entry in self._guess_order:
            if entry[1] == incarnation:
                self._forget_guesses(incarnation, entry[2])
            else:
                kept.append(entry)
        self._guess_order = kept

    def _guessed_holders(self, block_hash: bytes) -> int:
        mask = 0
        for incarnation in self._guesses.get(block_hash, ()):
            mask |= self._bits[incarnation]
        return mask

    def _forget_guesses(self, incarnation: str, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            guessed = self._guesses.get(block_hash)
            if guessed is not None and guessed.pop(incarnation, None) is not None and not guessed:
                del self._guesses[block_hash]

    def _expire_guesses(self) -> None:
        now = self._clock()
        while self._guess_order and self._guess_order[0][0] <= now:
            _, incarnation, hashes = self._guess_order.popleft()
            for block_hash in hashes:
                guessed = self._guesses.get(block_hash)
                if guessed is not None and guessed.get(incarnation, now + 1) <= now:
                    self._forget_guesses(incarnation, (block_hash,))
