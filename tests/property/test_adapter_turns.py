"""Slots of adapters: the table under random calls, and who gets a slot when all are held."""

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.property.test_scheduler import SimulatedEngine

from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_runtime.lora.slots import SlotTable

ADAPTERS = st.sampled_from([f"{name}@1" for name in "abcdef"])


class SlotMachine(RuleBasedStateMachine):
    """The device beside it gets what `take_changes` tells, and must hold what users were told."""

    @initialize(num_slots=st.integers(1, 4))
    def start(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.table = SlotTable(num_slots)
        self.device: dict[int, str] = {}
        self.users: list[tuple[str, int]] = []

    @rule(adapter=ADAPTERS)
    def acquire(self, adapter: str) -> None:
        held = {name for name, _ in self.users}
        expected = adapter in held or len(held) < self.num_slots
        assert self.table.can_hold(adapter) == expected
        if expected:
            self.users.append((adapter, self.table.acquire(adapter)))

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        user = data.draw(st.sampled_from(self.users))
        self.users.remove(user)
        self.table.release(user[0])

    @rule(adapter=ADAPTERS)
    def forget(self, adapter: str) -> None:
        if adapter not in {name for name, _ in self.users}:
            self.table.forget(adapter)
            assert adapter not in self.table.contents

    @precondition(lambda self: not self.users)
    @rule()
    def lose_all(self) -> None:
        self.table.forget_all()
        self.device.clear()
        assert self.table.contents == ()

    @rule()
    def step(self) -> None:
        self.device |= dict(self.table.take_changes())
        assert all(self.device[slot] == adapter for adapter, slot in self.users)
        assert self.table.take_changes() == ()

    @invariant()
    def consistent(self) -> None:
        self.table.check()
        assert len(self.table.contents) <= self.num_slots
        assert sum(self.table.held.values()) == len(self.users)


TestSlots = SlotMachine.TestCase
TestSlots.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_an_idle_adapter_stays_until_its_slot_is_needed_longest_idle_first() -> None:
    table = SlotTable(2)
    for adapter in ("a", "b"):
        table.acquire(adapter)
    for adapter in ("b", "a"):
        table.release(adapter)
    table.take_changes()

    assert table.acquire("a") == 0
    assert table.take_changes() == ()
    table.release("a")
    assert table.acquire("c") == 1
    assert table.take_changes() == ((1, "c"),)
    assert table.contents == ("a", "c")


def add(engine: SimulatedEngine, name: str, adapter: str, **fields: Any) -> None:
    fields = {"max_tokens": 4, "ignore_eos": True} | fields
    engine.add(name, [1, 2, 3], adapter=adapter, **fields)


def running(engine: SimulatedEngine) -> list[str]:
    return [each.request_id for each in engine.scheduler.running]


def test_those_without_a_slot_stand_in_nobody_s_way() -> None:
    engine = SimulatedEngine(max_loras=1)
    for name, adapter in (("a1", "a@1"), ("b1", "b@1"), ("base", ""), ("a2", "a@1")):
        add(engine, name, adapter)
    engine.step()

    assert running(engine) == ["a1", "base", "a2"]
    engine.run()
    assert list(engine.finished) == ["a1", "base", "a2", "b1"]
    assert engine.num_copies == 2


def test_endless_traffic_of_others_keeps_no_adapter_out() -> None:
    """Two adapters hold both slots and always have someone waiting; a third and a fourth come."""
    engine = SimulatedEngine(max_loras=2, max_num_seqs=4, num_blocks=40, budget=40)
    finished_at: dict[str, int] = {}
    for step in range(60):
        while len(engine.scheduler.waiting) < 8:
            count = len(engine.outputs) + len(engine.finished)
            add(engine, f"r{count}", "ab"[count % 2] + "@1")
        if step == 5:
            add(engine, "c", "c@1")
            add(engine, "d", "d@1")
        engine.step()
        engine.scheduler.check()
        finished_at |= {name: step for name in "cd" if name in engine.finished} | finished_at

    # Four overtake it, one of the slots drains (4 tokens each), and its own 4 tokens.
    assert finished_at["c"] <= 5 + 16
    assert finished_at["d"] <= 5 + 32


def test_background_requests_give_the_slots_that_they_alone_hold() -> None:
    engine = SimulatedEngine(max_loras=2, max_num_seqs=6, num_blocks=40, budget=40)
    add(engine, "back1", "a@1", priority=BACKGROUND_PRIORITY, max_tokens=20)
    add(engine, "back2", "b@1", priority=BACKGROUND_PRIORITY, max_tokens=20)
    add(engine, "front1", "a@1", max_tokens=20)
    engine.step()
    add(engine, "front2", "c@1")
    engine.step()

    assert sorted(running(engine)) == ["back1", "front1", "front2"]
    engine.run()
    assert sorted(engine.finished) == ["back1", "back2", "front1", "front2"]


def test_two_adapters_and_the_base_never_share_blocks_and_the_same_adapter_does() -> None:
    engine = SimulatedEngine(max_loras=4, num_blocks=40, budget=60)
    prompt = list(range(12))
    for name, adapter in (("base", ""), ("a", "a@1"), ("a2", "a@2"), ("b", "b@1")):
        engine.add(name, prompt, adapter=adapter, max_tokens=1)
        plan = engine.step()
        assert [item.start for item in plan.scheduled] == [0]
    engine.add("again", prompt, adapter="a@1", max_tokens=1)
    assert [item.start for item in engine.step().scheduled] == [11]
