"""The scheduler under random traffic, with an oracle for what the KV cache must hold.

Instead of a model, every slot of the simulated cache stores a digest of the whole prefix up to its
position. Steps may overlap: the tokens of one are told to the scheduler after the next was planned.
Each step first writes the slots that the plan says, then reads every position that
attention would read and compares it with the sequence's own tokens. A block shared wrongly, written
twice, freed too early or not computed shows as a wrong digest. Adapters are put into the device's
slots as the plans say; each sequence must find its own in its slot.
"""

import hashlib
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.messages import EngineRequest, TokenLogprobs
from octavo_runtime.engine.sampling_rows import prompt_parts
from octavo_runtime.engine.scheduler import (
    SampledToken,
    ScheduledSequence,
    Scheduler,
    SchedulerConfig,
    StepPlan,
)
from octavo_runtime.worker.step_input import StepInput, StepSequence

EOS = 7


def prefix_digests(token_ids: list[int], salt: str) -> Iterator[bytes]:
    state = hashlib.sha256(salt.encode())
    for token_id in token_ids:
        state.update(token_id.to_bytes(4, "little"))
        yield state.digest()


def _salt(request: EngineRequest) -> str:
    return request.cache_salt + request.adapter


@dataclass(frozen=True)
class InFlight:
    """A step that was executed and of which the scheduler does not know."""

    plan: StepPlan
    sampled: dict[str, SampledToken]
    scored: dict[str, list[TokenLogprobs]]


class SimulatedEngine:
    """Executes plans against a cache of digests; "samples" by a hash of the prefix."""

    def __init__(
        self,
        *,
        num_blocks: int = 16,
        block_size: int = 4,
        max_num_seqs: int = 4,
        budget: int = 12,
        max_model_len: int = 40,
        caching: bool = True,
        policy: str = "fcfs",
        threshold: int = 0,
        overlap: bool = False,
        background_budget: int | None = None,
        max_loras: int = 0,
    ) -> None:
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=max_model_len,
            block_size=block_size,
            policy=policy,
            long_prefill_token_threshold=threshold,
            cache_model="m",
            max_loras=max_loras,
        )
        self.scheduler = Scheduler(config, BlockPool(num_blocks, enable_prefix_caching=caching))
        self.background_budget = background_budget
        self.slots: dict[int, bytes] = {}
        self.adapters: dict[int, str] = {}  # in the device's slots
        self.num_copies = 0
        self.max_in_flight = 1 if overlap else 0
        self.in_flight: deque[InFlight] = deque()
        self.finished: dict[str, list[int]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.scored: dict[str, list[int]] = {}

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        cache_salt: str = "",
        priority: int = 0,
        adapter: str = "",
        **params: Any,
    ) -> None:
        request = EngineRequest(
            request_id,
            prompt,
            SamplingParams(temperature=0.0, **params),
            0.0,
            EOS,
            priority=priority,
            cache_salt=cache_salt,
            adapter=adapter,
        )
        self.outputs[request_id] = []
        self.scored[request_id] = []
        self.scheduler.add(request)

    def step(self) -> StepPlan:
        """Plans and executes a step, and tells the tokens of the oldest that is due."""
        plan = self.scheduler.schedule(background_budget=self.background_budget)
        assert plan.num_tokens <= self.scheduler.config.max_num_batched_tokens
        assert plan.scheduled or self.in_flight, "there was work, but nothing was scheduled"
        self._check_adapters(plan)
        if plan.scheduled:
            self.in_flight.append(self._execute(plan))
        while self.in_flight and (len(self.in_flight) > self.max_in_flight or not plan.scheduled):
            self._update(self.in_flight.popleft())
        return plan

    def _check_adapters(self, plan: StepPlan) -> None:
        self.adapters |= dict(plan.new_adapters)
        self.num_copies += len(plan.new_adapters)
        for sequence in (item.sequence for item in plan.scheduled):
            found = self.adapters[sequence.lora_slot] if sequence.lora_slot >= 0 else ""
            assert found == sequence.request.adapter
        assert all(0 <= slot < self.scheduler.config.max_loras for slot in self.adapters)

    def _execute(self, plan: StepPlan) -> "InFlight":
        block_size = self.scheduler.config.block_size
        tokens = [self._tokens(item) for item in plan.scheduled]
        step = StepInput.build(
            [
                StepSequence(
                    known[i.start : i.start + i.num_new_tokens],
                    i.start,
                    i.sequence.block_table,
                    i.sequence.num_shared_tokens,
                )
                for i, known in zip(plan.scheduled, tokens, strict=True)
            ],
            block_size,
        )
        expected = [
            list(prefix_digests(known, _salt(i.sequence.request)))
            for i, known in zip(plan.scheduled, tokens, strict=True)
        ]
        for row, item in enumerate(plan.scheduled):
            first = int(step.query_start_loc[row])
            for offset in range(item.num_new_tokens):
                slot = int(step.slot_mapping[first + offset])
                if slot >= 0:
                    self.slots[slot] = expected[row][item.start + offset]
        sampled = {}
        for row, item in enumerate(plan.scheduled):
            context = int(step.context_lens[row])
            table = item.sequence.block_table
            for position in range(context):
                slot = table[position // block_size] * block_size + position % block_size
                assert self.slots.get(slot) == expected[row][position], (
                    f"{item.sequence.request_id}: wrong KV at position {position}"
                )
            if item.samples:
                sampled[item.sequence.request_id] = SampledToken(expected[row][context - 1][0] % 32)
        scored = {
            plan.scheduled[row].sequence.request_id: [
                TokenLogprobs([token_id], [0.0], 1) for token_id in part.token_ids
            ]
            for row, part in prompt_parts(plan).items()
        }
        for item in plan.scheduled:
            if not item.sequence.reads_prefix_cache:
                assert item.sequence.num_cached_tokens == 0
                assert item.sequence.num_shared_tokens == 0
        return InFlight(plan, sampled, scored)

    def _tokens(self, item: ScheduledSequence) -> list[int]:
        """Those that the scheduler knows, and those of steps that it has not heard of."""
        pending = [
            step.sampled[item.sequence.request_id].token_id
            for step in self.in_flight
            if item.sequence.request_id in step.sampled
        ]
        return item.sequence.token_ids + pending

    def _update(self, step: "InFlight") -> None:
        for output in self.scheduler.update(step.plan, step.sampled, step.scored):
            self.outputs[output.request_id] += output.new_token_ids
            self.scored[output.request_id] += [
                position.token_ids[0] for position in output.new_prompt_logprobs or []
            ]
            if output.new_token_ids:
                self._check_scores(output.request_id, step.plan)
            if output.finish_reason is not None:
                self.finished[output.request_id] = self.outputs.pop(output.request_id)

    def _check_scores(self, request_id: str, plan: StepPlan) -> None:
        """When a sequence is sampled, its whole prompt is scored once, if it was to be at all."""
        [sequence] = [
            item.sequence for item in plan.scheduled if item.sequence.request_id == request_id
        ]
        wanted = sequence.request.prompt_token_ids[1:] if sequence.wants_prompt_logprobs else []
        assert self.scored[request_id] == wanted

    def run(self) -> None:
        while self.scheduler.has_work:
            self.step()
            self.scheduler.check()


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.sampled_from([1, 2, 4]),
        spare=st.integers(0, 10),
        budget=st.integers(4, 24),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        threshold=st.integers(0, 5),
        overlap=st.booleans(),
        background_budget=st.none() | st.integers(1, 12),
        max_loras=st.integers(1, 3),
    )
    def start(
        self,
        block_size: int,
        spare: int,
        budget: int,
        caching: bool,
        policy: str,
        threshold: int,
        overlap: bool,
        background_budget: int | None,
        max_loras: int,
    ) -> None:
        self.engine = SimulatedEngine(
            num_blocks=-(-24 // block_size) + spare,
            block_size=block_size,
            budget=budget,
            max_model_len=24,
            caching=caching,
            policy=policy,
            threshold=threshold,
            overlap=overlap,
            background_budget=background_budget,
            max_loras=max_loras,
        )
        self.count = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "tenant"]),
        adapter=st.sampled_from(["", "", "a@1", "a@2", "b@1", "c@1", "d@1"]),
        priority=st.sampled_from([-1, 0, 1, BACKGROUND_PRIORITY, BACKGROUND_PRIORITY + 1]),
        ignore_eos=st.booleans(),
        prompt_logprobs=st.sampled_from([None, None, 1]),
    )
    def add(
        self,
        prompt: list[int],
        max_tokens: int,
        salt: str,
        adapter: str,
        priority: int,
        ignore_eos: bool,
        prompt_logprobs: int | None,
    ) -> None:
        self.engine.add(
            str(self.count),
            prompt,
            max_tokens=max_tokens,
            cache_salt=salt,
            adapter=adapter,
            priority=priority,
            ignore_eos=ignore_eos,
            prompt_logprobs=prompt_logprobs,
        )
        self.count += 1

    @rule()
    def step(self) -> None:
        if self.engine.scheduler.has_work:
            self.engine.step()

    @rule(which=st.integers(0, 30))
    def abort(self, which: int) -> None:
        self.engine.scheduler.abort([str(which)])
        self.engine.outputs.pop(str(which), None)

    @invariant()
    def consistent(self) -> None:
        self.engine.scheduler.check()
        queue = self.engine.scheduler.waiting
        assert queue.num_tokens == sum(s.num_tokens for s in queue)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        assert not self.engine.outputs, "a request never finished"
        assert self.engine.scheduler.pool.num_free == self.engine.scheduler.pool.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


def test_ten_thousand_requests_with_cancellations_leak_nothing() -> None:
    rng = random.Random(0)
    engine = SimulatedEngine(num_blocks=24, max_num_seqs=6, budget=16)
    prefixes = [[rng.randrange(32) for _ in range(12)] for _ in range(5)]
    added = 0
    while added < 10_000 or engine.scheduler.has_work:
        while added < 10_000 and len(engine.scheduler.waiting) < 8:
            prompt = [*rng.choice(prefixes)[: rng.randint(1, 12)], rng.randrange(32)]
            engine.add(str(added), prompt, max_tokens=rng.randint(1, 6))
            added += 1
        if rng.random() < 0.2:
            victim = str(rng.randrange(max(0, added - 12), added))
            engine.scheduler.abort([victim])
            engine.outputs.pop(victim, None)
        if engine.scheduler.has_work:
            engine.step()
    engine.scheduler.check()
    assert not engine.outputs
    assert engine.scheduler.pool.num_free == 24
    assert engine.scheduler.num_hit_tokens > 0


def test_results_do_not_depend_on_caching_chunking_or_memory() -> None:
    prompts = {str(i): [1, 2, 3, 4] * 3 + [i] for i in range(8)}
    results = []
    variants: list[dict[str, Any]] = [
        {},
        {"caching": False},
        {"budget": 4, "threshold": 1},
        {"num_blocks": 10},
        {"policy": "priority"},
        {"max_num_seqs": 1},
        {"overlap": True},
        {"overlap": True, "num_blocks": 10, "budget": 6},
        {"priority": BACKGROUND_PRIORITY, "background_budget": 2},
    ]
    for options in variants:
        priority = options.pop("priority", 0)
        engine = SimulatedEngine(**options)
        for request_id, prompt in prompts.items():
            engine.add(request_id, prompt, max_tokens=9, ignore_eos=True, priority=priority)
        engine.run()
        results.append(engine.finished)
    assert all(result == results[0] for result in results)


def test_overlapping_steps_compute_no_token_beyond_a_limit() -> None:
    engine = SimulatedEngine(overlap=True)
    engine.add("a", [1, 2, 3], max_tokens=4, ignore_eos=True)
    plans = []
    while engine.scheduler.has_work:
        plans.append(engine.step())

    assert [plan.num_tokens for plan in plans] == [3, 1, 1, 1, 0]
    assert len(engine.finished["a"]) == 4


def test_the_step_after_an_end_token_is_in_vain_and_harms_nobody() -> None:
    alone = SimulatedEngine()
    alone.add("a", [3, 4], max_tokens=30)
    alone.run()
    together = SimulatedEngine(overlap=True, num_blocks=24)
    for i in range(12):
        together.add(str(i), [3, 4] if i % 2 else [i], max_tokens=30)
    together.run()

    assert alone.finished["a"][-1] == EOS
    assert together.finished["1"] == alone.finished["a"]
    assert together.scheduler.pool.num_free == 24


def test_tight_memory_preempts_the_youngest_and_it_comes_back_first() -> None:
    engine = SimulatedEngine(num_blocks=10, budget=32)
    for i in range(3):
        engine.add(str(i), [i] * 12, max_tokens=20, ignore_eos=True)
    preempted = []
    while engine.scheduler.has_work:
        before = {s.request_id for s in engine.scheduler.running}
        plan = engine.step()
        if plan.num_preempted:
            after = {s.request_id for s in engine.scheduler.running} | set(engine.finished)
            preempted += sorted(before - after)
    assert preempted
    assert "0" not in preempted, "the oldest is never preempted"
    assert list(engine.finished) == ["0", "1", "2"]


def test_equal_prompts_admitted_in_one_step_share_their_full_blocks() -> None:
    engine = SimulatedEngine(budget=40)
    for i in range(3):
        engine.add(str(i), list(range(10)), max_tokens=4, ignore_eos=True)
    plan = engine.step()
    assert [item.num_new_tokens for item in plan.scheduled] == [10, 2, 2]
    tables = [item.sequence.block_table for item in plan.scheduled]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert len({table[2] for table in tables}) == 3


def test_a_prompt_that_hits_everything_recomputes_its_last_token_only() -> None:
    engine = SimulatedEngine()
    engine.add("a", list(range(8)), max_tokens=1)
    engine.run()
    engine.add("b", list(range(8)), max_tokens=3, ignore_eos=True)
    plan = engine.step()
    assert [(item.start, item.num_new_tokens) for item in plan.scheduled] == [(7, 1)]
    assert plan.scheduled[0].sequence.num_cached_tokens == 7
    engine.run()
    assert engine.finished["b"][0] == engine.finished["a"][0]


def test_different_salts_never_share() -> None:
    engine = SimulatedEngine()
    engine.add("a", list(range(9)), max_tokens=1, cache_salt="x")
    engine.run()
    engine.add("b", list(range(9)), max_tokens=1, cache_salt="y")
    assert engine.step().scheduled[0].start == 0


def test_priority_policy_admits_urgent_requests_first() -> None:
    engine = SimulatedEngine(policy="priority", max_num_seqs=1)
    engine.add("late", [1, 2], max_tokens=2, priority=1, ignore_eos=True)
    engine.add("soon", [3, 4], max_tokens=2, priority=-1, ignore_eos=True)
    engine.run()
    assert list(engine.finished) == ["soon", "late"]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_background_requests_give_their_places_to_others_within_one_step(policy: str) -> None:
    engine = SimulatedEngine(policy=policy, max_num_seqs=2, budget=32)
    for name in ("b0", "b1"):
        engine.add(name, [1, 2], max_tokens=9, priority=BACKGROUND_PRIORITY, ignore_eos=True)
    engine.step()
    for name in ("f0", "f1"):
        engine.add(name, [3, 4], max_tokens=3, ignore_eos=True)
    plan = engine.step()
    assert [item.sequence.request_id for item in plan.scheduled] == ["f0", "f1"]
    assert plan.num_preempted == 2
    engine.run()
    assert list(engine.finished) == ["f0", "f1", "b0", "b1"]
    alone = SimulatedEngine()
    alone.add("b0", [1, 2], max_tokens=9, ignore_eos=True)
    alone.run()
    assert engine.finished["b0"] == alone.finished["b0"]


def test_background_requests_give_their_blocks_to_others_within_one_step() -> None:
    engine = SimulatedEngine(num_blocks=10, budget=64, caching=False)
    engine.add("b", [1] * 30, max_tokens=9, priority=BACKGROUND_PRIORITY, ignore_eos=True)
    engine.step()
    engine.add("f", [2] * 30, max_tokens=2, ignore_eos=True)
    plan = engine.step()
    assert [item.sequence.request_id for item in plan.scheduled] == ["f"]
    engine.run()
    assert list(engine.finished) == ["f", "b"]


def test_background_prompts_get_what_others_leave_of_the_budget() -> None:
    engine = SimulatedEngine(num_blocks=30, budget=8)
    engine.add("b", [1] * 30, max_tokens=1, priority=BACKGROUND_PRIORITY)
    engine.step()
    engine.add("f", [2] * 6, max_tokens=2, ignore_eos=True)
    steps = [engine.step(), engine.step()]
    assert [
        {i.sequence.request_id: i.num_new_tokens for i in plan.scheduled} for plan in steps
    ] == [
        {"f": 6, "b": 2},
        {"f": 1, "b": 7},
    ]


def test_background_work_keeps_to_its_budget_and_waits_where_others_fill_it() -> None:
    engine = SimulatedEngine(num_blocks=30, budget=40, background_budget=5)
    for name, prompt in (("b0", [1] * 12), ("b1", [2] * 12)):
        engine.add(name, prompt, max_tokens=3, priority=BACKGROUND_PRIORITY, ignore_eos=True)
    plans = [engine.step()]
    assert engine.scheduler.has_foreground is False
    engine.add("f", [3] * 20, max_tokens=2, ignore_eos=True)
    assert engine.scheduler.has_foreground is True
    plans += [engine.step(), engine.step()]
    assert engine.scheduler.has_foreground is False
    plans += [engine.step(), engine.step()]
    assert [
        {i.sequence.request_id: i.num_new_tokens for i in plan.scheduled} for plan in plans
    ] == [
        {"b0": 5},
        {"f": 20},
        {"f": 1, "b0": 4},
        {"b0": 3, "b1": 2},
        {"b0": 1, "b1": 4},
    ]


@pytest.mark.parametrize("prompt_len", [8, 9, 12, 33])
def test_from_a_request_to_its_first_token_no_background_token_is_computed(prompt_len: int) -> None:
    """It waits for nothing but the step that runs when it comes; short prompts share one step."""
    engine = SimulatedEngine(num_blocks=60, budget=12, max_num_seqs=4, background_budget=8)
    for number in range(6):
        name = f"b{number}"
        engine.add(name, [number] * 9, max_tokens=9, priority=BACKGROUND_PRIORITY, ignore_eos=True)
    for _ in range(7):
        engine.step()
    engine.add("f", [7] * prompt_len, max_tokens=2, ignore_eos=True)
    while not engine.outputs["f"]:
        plan = engine.step()
        assert not plan.has_background
        assert plan.num_tokens == sum(item.num_new_tokens for item in plan.scheduled[-1:])
    assert engine.step().has_background


def test_background_work_is_told_apart_in_what_is_there() -> None:
    engine = SimulatedEngine(max_num_seqs=2, budget=8, caching=False)
    scheduler = engine.scheduler
    for name, priority in (("b0", BACKGROUND_PRIORITY), ("b1", BACKGROUND_PRIORITY), ("f", 0)):
        engine.add(name, [1] * 10, max_tokens=3, priority=priority, ignore_eos=True)

    def counts() -> tuple[int, ...]:
        return (
            len(scheduler.running),
            scheduler.num_background_running,
            len(scheduler.waiting),
            scheduler.waiting.num_background,
            scheduler.num_uncomputed_tokens,
            scheduler.num_background_uncomputed_tokens,
        )

    assert counts() == (0, 0, 3, 2, 30, 20)
    engine.step()
    assert counts() == (1, 0, 2, 2, 22, 20)
    engine.step()  # two of f's prompt, six of b0's
    assert counts() == (2, 1, 1, 1, 14, 14)
    scheduler.abort(["b1"])
    assert counts() == (2, 1, 0, 0, 4, 4)
    engine.run()
    assert counts() == (0, 0, 0, 0, 0, 0)


def test_background_requests_wait_behind_all_others() -> None:
    engine = SimulatedEngine(max_num_seqs=1)
    engine.add("b", [1], max_tokens=1, priority=BACKGROUND_PRIORITY)
    engine.add("f", [2], max_tokens=1, priority=5)
    engine.run()
    assert list(engine.finished) == ["f", "b"]


def test_decodes_come_before_prefill_chunks_in_the_budget() -> None:
    engine = SimulatedEngine(budget=4, max_num_seqs=4, num_blocks=20)
    engine.add("a", [1], max_tokens=10, ignore_eos=True)
    engine.step()
    engine.add("b", list(range(12)), max_tokens=1)
    plan = engine.step()
    assert [(i.sequence.request_id, i.num_new_tokens) for i in plan.scheduled] == [
        ("a", 1),
        ("b", 3),
    ]


def test_a_prompt_s_positions_are_scored_chunk_by_chunk() -> None:
    engine = SimulatedEngine(budget=4, max_num_seqs=2)
    engine.add("a", list(range(10)), max_tokens=2, prompt_logprobs=0, ignore_eos=True)

    scored = []
    while engine.scheduler.has_work:
        engine.step()
        scored.append(len(engine.scored["a"]))

    assert scored == [4, 8, 9, 9]
    assert engine.scored["a"] == list(range(1, 10))


def test_preempted_sequences_are_not_scored_twice() -> None:
    engine = SimulatedEngine(num_blocks=10, budget=8)
    for i in range(3):
        engine.add(str(i), [i] * 12, max_tokens=20, ignore_eos=True, prompt_logprobs=0)

    engine.run()

    assert engine.scheduler.num_preemptions > 0
    assert engine.scored == {str(i): [i] * 11 for i in range(3)}


def test_the_time_of_the_first_admission_stays() -> None:
    engine = SimulatedEngine()
    engine.add("a", list(range(20)), max_tokens=3, ignore_eos=True)
    plan = engine.scheduler.schedule(now=5.0)

    [item] = plan.scheduled
    engine.scheduler.preempt_all()
    engine.scheduler.schedule(now=6.0)

    assert item.sequence.scheduled_ts == 5.0
