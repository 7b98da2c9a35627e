"""The block pool under random calls: invariants hold after each, and what it says is true."""

import hashlib

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from octavo_protocol.records import BlocksRemoved, BlocksStored, CacheCleared
from octavo_runtime.engine.block_pool import BlockPool, OutOfBlocksError


def chain(text: str) -> list[bytes]:
    """Prefix hashes of `text`, one per character: equal prefixes share their leading hashes."""
    return [hashlib.sha256(text[: i + 1].encode()).digest()[:16] for i in range(len(text))]


class BlockPoolMachine(RuleBasedStateMachine):
    """Tables of blocks come and go; a replay of the events must equal the pool's own cache."""

    tables = Bundle("tables")

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.held: list[list[int]] = []
        self.replayed: set[bytes] = set()

    @rule(target=tables, text=st.text("ab", min_size=1, max_size=6))
    def open_table(self, text: str) -> object:
        """What admission does: match, acquire, allocate the rest, register all."""
        hashes = chain(text)
        hits = self.pool.match(hashes)
        fresh = len(hashes) - len(hits)
        if fresh > self.pool.num_free_after_acquire(hits):
            return multiple()
        self.pool.acquire(hits)
        table = hits + self.pool.allocate(fresh)
        parent = hashes[len(hits) - 1] if hits else None
        self.pool.register(table[len(hits) :], hashes[len(hits) :], parent)
        found = self.pool.match(hashes)
        assert found[: len(hits)] == hits
        assert len(found) == len(
            table
        )  # where another block has the hash already, it stays the one
        self.held.append(table)
        return table

    @rule(target=tables, count=st.integers(1, 4), text=st.text("ab", min_size=4, max_size=4))
    def open_private_then_register(self, count: int, text: str) -> object:
        """Two sequences that compute the same text apart: only one copy becomes findable."""
        if count > self.pool.num_free:
            return multiple()
        table = self.pool.allocate(count)
        self.pool.register(table, chain(text)[:count], None)
        self.held.append(table)
        return table

    @rule(table=consumes(tables))
    def close_table(self, table: list[int]) -> None:
        self.pool.release(table)
        self.held.remove(table)

    @rule(extra=st.integers(1, 3))
    def ask_for_too_many(self, extra: int) -> None:
        before = self.pool.num_free
        with pytest.raises(OutOfBlocksError, match=f"{before} free"):
            self.pool.allocate(before + extra)
        assert self.pool.num_free == before

    @rule()
    def reset(self) -> None:
        assert self.pool.reset_prefix_cache() == (not self.held)

    @invariant()
    def consistent(self) -> None:
        self.pool.check()
        in_use = {block for table in self.held for block in table}
        assert self.pool.num_free == self.pool.num_blocks - len(in_use)

    @invariant()
    def events_tell_the_truth(self) -> None:
        for event in self.pool.take_events():
            if isinstance(event, BlocksStored):
                assert not self.replayed & set(event.hashes), "stored twice"
                self.replayed |= set(event.hashes)
            elif isinstance(event, BlocksRemoved):
                assert self.replayed >= set(event.hashes), "removed what was not there"
                self.replayed -= set(event.hashes)
            else:
                assert isinstance(event, CacheCleared)
                self.replayed.clear()
        assert len(self.replayed) == self.pool.num_cached
        assert all(len(self.pool.match([h])) == 1 for h in self.replayed)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_eviction_takes_the_tail_of_the_least_recently_used_prefix_first() -> None:
    pool = BlockPool(4)
    old, young = chain("xy"), chain("pq")
    for hashes in (old, young):
        table = pool.allocate(2)
        pool.register(table, hashes, None)
        pool.release(table)
    pool.allocate(1)
    assert (len(pool.match(old)), len(pool.match(young))) == (1, 2)
    pool.allocate(1)
    assert (len(pool.match(old)), len(pool.match(young))) == (0, 2)
    pool.allocate(1)
    assert len(pool.match(young)) == 1


def test_blocks_without_a_hash_are_reused_before_cached_ones() -> None:
    pool = BlockPool(3)
    cached = pool.allocate(1)
    pool.register(cached, chain("a"), None)
    pool.release(cached)
    blank = pool.allocate(1)
    pool.release(blank)
    assert pool.allocate(1) == blank
