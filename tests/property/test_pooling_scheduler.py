"""Every prompt is computed once, in order, within the limits, whatever comes and goes."""

from collections import defaultdict

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo_protocol.pooling import PoolingParams
from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.messages import PoolingRequest
from octavo_runtime.engine.pooling_scheduler import PoolingScheduler, PoolingSchedulerConfig

BLOCK_SIZE, MAX_LEN = 4, 24


class _Machine(RuleBasedStateMachine):
    has_pool: bool

    def __init__(self) -> None:
        super().__init__()
        config = PoolingSchedulerConfig(
            max_num_seqs=3,
            max_num_batched_tokens=10 if self.has_pool else MAX_LEN,
            block_size=BLOCK_SIZE,
            policy="priority",
            max_chunk=7,
            max_loras=2,
        )
        self.adapters: dict[int, str] = {}  # in the device's slots
        pool = BlockPool(MAX_LEN // BLOCK_SIZE + 2) if self.has_pool else None
        self.scheduler = PoolingScheduler(config, pool)
        self.lengths: dict[str, int] = {}
        self.computed: dict[str, int] = defaultdict(int)
        self.num_added = 0

    @rule(
        length=st.integers(1, MAX_LEN),
        word=st.integers(0, 2),
        priority=st.sampled_from([0, 1, 2, BACKGROUND_PRIORITY]),
        reads=st.booleans(),
        adapter=st.sampled_from(["", "", "a@1", "b@1", "c@1"]),
    )
    def add(self, length: int, word: int, priority: int, reads: bool, adapter: str) -> None:
        request_id = str(self.num_added)
        self.num_added += 1
        self.lengths[request_id] = length
        request = PoolingRequest(request_id, [word] * length, PoolingParams(), 0.0)
        request.priority = priority
        request.adapter = adapter
        self.scheduler.add(request, reads_prefix_cache=reads)

    @rule(data=st.data())
    @precondition(lambda self: self.lengths)
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.lengths)))
        self.scheduler.abort([request_id, "unknown"])
        del self.lengths[request_id]
        self.computed.pop(request_id, None)

    @rule()
    def preempt_all(self) -> None:
        self.scheduler.preempt_all()
        self.computed.clear()

    @rule(background_budget=st.none() | st.integers(1, 9))
    def step(self, background_budget: int | None = None) -> None:
        had_work = self.scheduler.has_work
        chunks = self.scheduler.schedule(background_budget=background_budget)
        assert bool(chunks) == had_work
        if background_budget is not None and any(chunk.prompt.is_background for chunk in chunks):
            is_whole_and_alone = not self.has_pool and len(chunks) == 1
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            assert num_tokens <= background_budget or is_whole_and_alone
        self.adapters |= dict(self.scheduler.turns.slots.take_changes())
        assert set(self.adapters) <= {0, 1}
        for chunk in chunks:
            found = self.adapters[chunk.lora_slot] if chunk.lora_slot >= 0 else ""
            assert found == chunk.prompt.request.adapter
        config = self.scheduler.config
        assert sum(chunk.num_tokens for chunk in chunks) <= config.max_num_batched_tokens
        assert len(chunks) <= config.max_num_seqs
        is_long = [chunk.num_tokens > 1 for chunk in chunks]
        assert is_long == sorted(is_long)
        for chunk in chunks:
            request_id = chunk.prompt.request_id
            known = self.computed.get(request_id, 0)
            is_first = request_id not in self.computed
            assert chunk.start == known or (is_first and chunk.prompt.reads_prefix_cache)
            assert chunk.num_tokens <= (config.max_chunk if self.has_pool else MAX_LEN)
            self.computed[request_id] = chunk.start + chunk.num_tokens
            if chunk.is_last:
                assert self.computed.pop(request_id) == self.lengths.pop(request_id)
            else:
                assert self.has_pool

    @rule()
    def finish_all(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.lengths
        assert self.scheduler.num_uncomputed_tokens == 0

    @invariant()
    def nothing_leaks(self) -> None:
        self.scheduler.check()


class _Decoders(_Machine):
    has_pool = True


class _Encoders(_Machine):
    has_pool = False


TestDecoders = _Decoders.TestCase
TestEncoders = _Encoders.TestCase


@pytest.mark.parametrize("has_pool", [False, True])
def test_background_prompts_wait_for_others_and_keep_steps_short(has_pool: bool) -> None:
    config = PoolingSchedulerConfig(
        max_num_seqs=9, max_num_batched_tokens=40, block_size=BLOCK_SIZE
    )
    scheduler = PoolingScheduler(config, BlockPool(40) if has_pool else None)

    def add(name: str, length: int, priority: int = 0) -> None:
        request = PoolingRequest(name, [1] * length, PoolingParams(), 0.0)
        request.priority = priority
        scheduler.add(request)

    def step() -> dict[str, int]:
        chunks = scheduler.schedule(background_budget=8)
        return {chunk.prompt.request_id: chunk.num_tokens for chunk in chunks}

    for name, length in (("b0", 4), ("b1", 4), ("b2", 20), ("b3", 5)):
        add(name, length, BACKGROUND_PRIORITY)
    assert not scheduler.has_foreground
    assert step() == {"b0": 4, "b1": 4}
    add("f0", 25)
    add("f1", 3)
    assert scheduler.has_foreground
    assert step() == {"f0": 25, "f1": 3}
    assert not scheduler.has_foreground
    add("f2", 6)
    if has_pool:
        assert [step() for _ in range(5)] == [
            {"f2": 6, "b2": 2},
            {"b2": 8},
            {"b2": 8},
            {"b2": 2, "b3": 5},
            {},
        ]
    else:
        assert [step() for _ in range(4)] == [{"f2": 6}, {"b2": 20}, {"b3": 5}, {}]
