"""The schedule of turns against a plain account of what was asked for, in any order of calls."""

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from octavo_operator.queue import MAX_BACKOFF_S, Key, Schedule

KEYS = st.sampled_from([Key("default", name) for name in "abcd"])
DELAYS = st.floats(0, 300)


class ScheduleMachine(RuleBasedStateMachine):
    """due: the earliest time that was asked for, for each key that has a turn coming."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.now = 0.0
        self.due: dict[Key, float] = {}
        self.running: set[Key] = set()

    @rule(seconds=DELAYS)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS, delay=DELAYS)
    def add(self, key: Key, delay: float) -> None:
        self.schedule.add(key, self.now + delay)
        self._note(key, self.now + delay)

    @rule()
    def take(self) -> None:
        key = self.schedule.take(self.now)
        could = {each for each in self.waiting if self.due[each] <= self.now}
        if key is None:
            assert not could
            return
        assert self.due[key] == min(self.due[each] for each in could)
        del self.due[key]
        self.running.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), look_again=st.none() | DELAYS)
    def finish(self, data: st.DataObject, look_again: float | None) -> None:
        key = self._end_one(data)
        self.schedule.finish(key, self.now, look_again_s=look_again)
        if look_again is not None:
            self._note(key, self.now + look_again)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        key = self._end_one(data)
        delay = self.schedule.fail(key, self.now)
        assert 0 <= delay <= MAX_BACKOFF_S
        self._note(key, self.now + delay)

    @invariant()
    def the_next_turn_is_the_earliest_that_was_asked_for(self) -> None:
        assert self.schedule.next_due == min((self.due[key] for key in self.waiting), default=None)
        assert self.schedule.num_due(self.now) == sum(
            self.due[key] <= self.now for key in self.waiting
        )

    @property
    def waiting(self) -> set[Key]:
        return self.due.keys() - self.running

    def _note(self, key: Key, due: float) -> None:
        self.due[key] = min(due, self.due.get(key, math.inf))

    def _end_one(self, data: st.DataObject) -> Key:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(key)
        return key

    def teardown(self) -> None:
        """Nothing that was asked for is ever lost."""
        for each in sorted(self.running):
            self.schedule.finish(each, self.now)
        taken = []
        while (key := self.schedule.take(math.inf)) is not None:
            taken.append(key)
        assert sorted(taken) == sorted(self.due)


TestSchedule = ScheduleMachine.TestCase
