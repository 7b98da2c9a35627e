"""A simulated replica takes the time that its cost model says, and keeps its pool in order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.sim.options import ReplicaModel
from octavo.sim.replica import SimulatedReplica, SimulatedSequence
from octavo.sim.trace import TraceRequest

MODEL = ReplicaModel(
    num_blocks=16,
    block_size=4,
    prefill_tokens_per_s=100.0,
    decode_step_s=0.01,
    decode_sequence_s=0.001,
    max_num_seqs=4,
    max_num_batched_tokens=8,
)


def request(prompt: int, output: int, prefix: str = "x") -> TraceRequest:
    hashes = tuple(f"{prefix}{index}".encode() for index in range(-(-prompt // 4)))
    return TraceRequest(0.0, prompt, output, hashes)


def test_a_prompt_takes_its_tokens_over_the_rate_and_each_further_token_one_step() -> None:
    replica = SimulatedReplica("a", MODEL)
    replica.submit(SimulatedSequence(0, request(10, 4)))
    replica.advance(10.0)
    first, end = replica.take_progress()
    assert (first.is_end, end.is_end) == (False, True)
    assert first.time_s == pytest.approx(0.10)
    assert end.time_s == pytest.approx(0.13)
    assert replica.num_prefill_tokens == 10


def test_a_second_equal_prompt_computes_its_last_token_only() -> None:
    replica = SimulatedReplica("a", MODEL)
    replica.submit(SimulatedSequence(0, request(8, 1)))
    replica.submit(SimulatedSequence(1, request(8, 1)))
    replica.advance(10.0)
    assert replica.num_prefill_tokens == 8 + 1
    assert replica.num_cached_tokens == 7


def test_a_request_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        SimulatedReplica("a", MODEL).submit(SimulatedSequence(0, request(60, 5)))


def test_an_idle_replica_only_lets_time_pass() -> None:
    replica = SimulatedReplica("a", MODEL)
    replica.advance(5.0)
    assert replica.now == 5.0
    assert replica.take_progress() == []


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=25),
    seed=st.integers(0, 1000),
)
def test_every_request_ends_once_and_every_block_is_free_again(
    lengths: list[tuple[int, int]], seed: int
) -> None:
    rng = random.Random(seed)
    replica = SimulatedReplica("a", MODEL)
    progress = []
    for key, (prompt, output) in enumerate(lengths):
        replica.submit(SimulatedSequence(key, request(prompt, output, rng.choice("xyz"))))
        replica.advance(replica.now + rng.random())
        replica.pool.check()
        progress += replica.take_progress()
    replica.advance(replica.now + 1000)
    progress += replica.take_progress()
    for is_end in (False, True):
        keys = [each.sequence.key for each in progress if each.is_end is is_end]
        assert sorted(keys) == list(range(len(lengths)))
    assert [each.time_s for each in progress] == sorted(each.time_s for each in progress)
    assert replica.pool.num_free == MODEL.num_blocks
    assert replica.num_waiting_tokens == replica.num_running == 0
