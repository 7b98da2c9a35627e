"""The pool of KV blocks: reference counts, LRU free list, prefix cache.

Every block is in exactly one of three states:

    in use     ref_count > 0, not in the free list; may have a hash (then others can share it)
    cached     ref_count = 0, in the free list, has a hash: reusable until it is evicted
    blank      ref_count = 0, in the free list, no hash

The free list is in eviction order: blank and least recently used blocks first. `check()` asserts
these invariants. No torch here: the pool hands out ids, the KV tensors are the worker's.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from octavo_protocol.records import BlocksRemoved, BlocksStored, CacheCleared, KVEvent


class OutOfBlocksError(Exception):
    """More blocks were asked for than are free; the pool is unchanged."""


class BlockPool:
    """Hands out blocks 0 … num_blocks-1. Not thread-safe; the scheduler owns it."""

    def __init__(self, num_blocks: int, *, enable_prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self._ref_counts = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._events: list[KVEvent] = []

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can give, cached ones included."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that have a hash, in use or not."""
        return len(self._block_of)

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """Ids of the longest run of leading `hashes` that are cached. Takes no reference."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_free_after_acquire(self, blocks: Sequence[int]) -> int:
        """Blocks that would stay free if `blocks` were acquired."""
        return len(self._free) - sum(1 for block in blocks if self._ref_counts[block] == 0)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Takes one reference to each of `blocks` (from `match`)."""
        for block in blocks:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each; what they cached is evicted.

        Raises `OutOfBlocksError` and changes nothing when fewer are free.
        """
        if count > len(self._free):
            raise OutOfBlocksError(f"{count} blocks asked, {len(self._free)} free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        evicted: list[bytes] = []
        for block in blocks:
            self._ref_counts[block] = 1
            old_hash = self._hash_of[block]
            if old_hash is not None:
                del self._block_of[old_hash]
                self._hash_of[block] = None
                evicted.append(old_hash)
        if evicted:
            self._events.append(BlocksRemoved(evicted))
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Gives back one reference to each of `blocks`, a sequence's table in order.

        The tail is freed first, so that eviction shortens a prefix from its end. Blocks without a
        hash are worth nothing and go to the front of the free list.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def register(
        self, blocks: Sequence[int], hashes: Sequence[bytes], parent: bytes | None
    ) -> None:
        """Makes full blocks findable: `blocks[i]` holds the KV named by `hashes[i]`.

        parent: hash of the block before the first, None at the start of a prompt. Where another
        block already has a hash (two sequences computed the same text), that one stays the cached
        one and this block remains private to its sequence.
        """
        if not self.enable_prefix_caching:
            return
        run: list[bytes] = []
        for block, block_hash in zip(blocks, hashes, strict=True):
            if block_hash in self._block_of:
                if run:
                    self._events.append(BlocksStored(parent, run))
                run, parent = [], block_hash
                continue
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash
            run.append(block_hash)
        if run:
            self._events.append(BlocksStored(parent, run))

    def reset_prefix_cache(self) -> bool:
        """Forgets every hash. False, and no change, while any block is in use."""
        if len(self._free) != self.num_blocks:
            return False
        self._block_of.clear()
        self._hash_of = [None] * self.num_blocks
        self._events.append(CacheCleared())
        return True

    def take_events(self) -> list[KVEvent]:
        """What happened to the prefix cache since the last call, in order."""
        events, self._events = self._events, []
        return events

    def check(self) -> None:
        """Asserts the invariants of the module's docstring. For tests; linear in the pool."""
        for block in range(self.num_blocks):
            assert self._ref_counts[block] >= 0, f"block {block}: negative reference count"
            assert (self._ref_counts[block] == 0) == (block in self._free), f"block {block}"
        assert len(self._free) <= self.num_blocks
        for block_hash, block in self._block_of.items():
            assert self._hash_of[block] == block_hash, f"block {block}: hash table disagrees"
        num_hashed = sum(1 for block_hash in self._hash_of if block_hash is not None)
        assert num_hashed == len(self._block_of), "a block has a hash that is not in the table"
