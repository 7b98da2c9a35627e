"""The prefix index under random calls equals a model that keeps plain sets."""

import hashlib

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octavo_router.prefix_index import BYTES_PER_ENTRY, IndexBudget, MemoryPrefixIndex

GUESS_S = 5.0
REPLICAS = st.sampled_from(["a", "b", "c"])
TEXTS = st.text("xy", max_size=5)


def chain(text: str) -> list[bytes]:
    return [hashlib.sha256(text[: i + 1].encode()).digest()[:16] for i in range(len(text))]


PROBES = [chain(text) for text in ("", "x", "y", "xy", "xxyxy", "yyyyy", "xyxyx", "yxyxx")]


class PrefixIndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.index = MemoryPrefixIndex(speculation_s=GUESS_S, clock=lambda: self.now)
        self.held: dict[str, set[bytes]] = {}
        self.guessed: dict[tuple[str, bytes], float] = {}

    @rule(replica=REPLICAS, text=TEXTS)
    def store(self, replica: str, text: str) -> None:
        self.index.add(replica, chain(text))
        self.held.setdefault(replica, set()).update(chain(text))

    @rule(replica=REPLICAS, text=TEXTS, start=st.integers(0, 4))
    def remove(self, replica: str, text: str, start: int) -> None:
        hashes = chain(text)[start:]
        self.index.remove(replica, hashes)
        self.held.setdefault(replica, set()).difference_update(hashes)

    @rule(replica=REPLICAS)
    def clear(self, replica: str) -> None:
        self.index.clear(replica)
        self._reset(replica)

    @rule(replica=REPLICAS, texts=st.lists(TEXTS, max_size=3))
    def snapshot(self, replica: str, texts: list[str]) -> None:
        hashes = {each for text in texts for each in chain(text)}
        self.index.clear(replica)
        self.index.add(replica, hashes)
        self._reset(replica)
        self.held[replica] = hashes

    @rule(replica=REPLICAS)
    def drop(self, replica: str) -> None:
        self.index.drop(replica)
        self._reset(replica)

    @rule(replica=REPLICAS, text=TEXTS)
    def guess(self, replica: str, text: str) -> None:
        self.index.speculate(replica, chain(text))
        for block_hash in chain(text):
            self.guessed[replica, block_hash] = self.now + GUESS_S

    @rule(seconds=st.sampled_from([1.5, 3.0, 6.0, 21.0]))
    def wait(self, seconds: float) -> None:
        """Never to within the half second in which a guess may still count."""
        self.now += seconds

    @invariant()
    def matches_equal_the_model(self) -> None:
        """Leading blocks; past a hole maybe more, but then up to a block that is there."""
        for hashes in PROBES:
            depths = self.index.match(hashes)
            for replica in "abc":
                held = [self._holds(replica, block_hash) for block_hash in hashes]
                leading = (*held, False).index(False)
                depth = depths.get(replica, 0)
                if True not in held[leading:]:
                    assert depth == leading
                assert (leading == 0) == (depth == 0)
                assert depth >= leading
                assert all(held[depth - 1 : depth])
                assert True not in held[depth : depth + 1] or depth == 0

    @invariant()
    def counts_equal_the_model(self) -> None:
        self.index.check()
        assert self.index.num_entries == sum(map(len, self.held.values()))

    def _holds(self, replica: str, block_hash: bytes) -> bool:
        is_guessed = self.guessed.get((replica, block_hash), 0.0) > self.now
        return is_guessed or block_hash in self.held.get(replica, ())

    def _reset(self, replica: str) -> None:
        self.held[replica] = set()
        self.guessed = {key: value for key, value in self.guessed.items() if key[0] != replica}


TestPrefixIndex = PrefixIndexMachine.TestCase
TestPrefixIndex.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_past_its_bound_the_index_refuses_blocks_and_predicts_less() -> None:
    budget = IndexBudget(10 * BYTES_PER_ENTRY)
    index = MemoryPrefixIndex(budget=budget)
    hashes = chain("x" * 50)

    index.add("a", hashes)

    assert index.match(hashes) == {"a": 10}
    assert budget.num_refused == 40
    assert budget.num_bytes == 10 * BYTES_PER_ENTRY

    index.clear("a")
    assert budget.num_bytes == 0


def test_indexes_on_one_budget_share_its_room() -> None:
    budget = IndexBudget(10 * BYTES_PER_ENTRY)
    first, second = MemoryPrefixIndex(budget=budget), MemoryPrefixIndex(budget=budget)
    first.add("a", chain("x" * 8))

    second.add("b", chain("x" * 8))
    assert (first.match(chain("x" * 8)), second.match(chain("x" * 8))) == ({"a": 8}, {"b": 2})

    first.drop("a")
    second.add("b", chain("x" * 8))
    assert second.match(chain("x" * 8)) == {"b": 8}
    first.check()
    second.check()


def test_a_bit_of_a_dropped_replica_may_be_reused_before_its_guesses_expire() -> None:
    now = [0.0]
    index = MemoryPrefixIndex(speculation_s=5.0, clock=lambda: now[0])
    index.speculate("old", chain("xy"))
    index.drop("old")
    now[0] = 3.0
    index.speculate("new", chain("xy"))
    now[0] = 5.5  # the old entry's end
    assert index.match(chain("xy")) == {"new": 2}
