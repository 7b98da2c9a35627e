"""Health under random traffic: bounds hold, and a fleet that slows down as a whole stays whole."""

import random

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from octavo_router.health import Attempt, Cause, ReplicaHealth
from octavo_router.stalls import StallWatch

NAMES = ("a", "b", "c", "d", "e")
REPLICAS = st.sampled_from(NAMES)


class HealthMachine(RuleBasedStateMachine):
    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.health = ReplicaHealth(lambda: self.now)
        self.health.keep(NAMES)
        self.trials: dict[str, Attempt] = {}

    @rule(target=attempts, name=REPLICAS, expected_s=st.floats(0, 9))
    def send(self, name: str, expected_s: float) -> Attempt:
        attempt = self.health.sent(name, expected_s)
        if attempt.is_trial:
            earlier = self.trials.get(name)
            assert earlier is None or self.now - earlier.sent_at >= 0.5
            self.trials[name] = attempt
        return attempt

    @rule(attempt=attempts)
    def begin(self, attempt: Attempt) -> None:
        self.health.first_byte(attempt)
        if attempt.is_trial:
            self.trials.pop(attempt.incarnation, None)

    @rule(
        attempt=consumes(attempts), cause=st.sampled_from([None, *list(Cause)[:2], Cause.STALLED])
    )
    def end(self, attempt: Attempt, cause: Cause | None) -> None:
        if cause is None:
            self.health.answered(attempt)
        else:
            self.health.failed(attempt, cause)
        self.health.ended(attempt)
        if self.trials.get(attempt.incarnation) is attempt:
            del self.trials[attempt.incarnation]

    @rule(attempt=consumes(attempts))
    def leave(self, attempt: Attempt) -> None:
        self.health.ended(attempt)
        if self.trials.get(attempt.incarnation) is attempt:
            del self.trials[attempt.incarnation]

    @rule(seconds=st.floats(0, 70))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def at_most_half_are_out_for_anything_but_broken_connections(self) -> None:
        causes = [self.health.ejected(name) for name in NAMES]
        assert sum(cause not in (None, Cause.BROKEN) for cause in causes) <= len(NAMES) / 2

    @invariant()
    def no_ejection_is_longer_than_a_minute(self) -> None:
        assert all(0 <= self.health.seconds_left(name) <= 60 for name in NAMES)


TestHealth = HealthMachine.TestCase
TestHealth.settings = settings(max_examples=60, stateful_step_count=60)


def test_a_trial_after_a_broken_connection_ejects_for_something_else_only_where_there_is_room() -> (
    None
):
    now = 0.0
    health = ReplicaHealth(lambda: now)
    health.keep(NAMES)
    health.failed(health.sent("c", 1), Cause.BROKEN)
    for name in ("a", "b"):
        health.failed(health.sent(name, 1), Cause.STALLED)
    now = 0.6
    trial = health.sent("c", 1)
    assert trial.is_trial
    assert health.failed(trial, Cause.STALLED) is None
    health.ended(trial)
    assert [health.ejected(name) for name in NAMES] == [
        *(Cause.STALLED, Cause.STALLED),
        *(None, None, None),
    ]
    assert health.sent("c", 1).is_trial


@given(
    slowness=st.floats(1, 50),
    spread=st.floats(1, 2),
    load=st.floats(0.2, 5),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_an_overloaded_fleet_loses_no_replica_and_moves_no_request(
    slowness: float, spread: float, load: float, seed: int
) -> None:
    """Queues that grow without end, at replicas that take `slowness` times as long as they say: no
    ejection, no stall, so that an overload is never multiplied.
    """
    rng = random.Random(seed)
    now = 0.0
    health, watch = ReplicaHealth(lambda: now), StallWatch(lambda: now)
    health.keep(NAMES)
    free_at = dict.fromkeys(NAMES, 0.0)
    running: list[tuple[float, Attempt]] = []
    for _ in range(300):
        now += rng.expovariate(load * len(NAMES))
        for begins_at, attempt in sorted(running, key=lambda each: each[0]):
            if begins_at <= now:
                running.remove((begins_at, attempt))
                watch.done(attempt)
                watch.heard(attempt.incarnation)
                assert health.first_byte(attempt) is None
                health.answered(attempt)
                health.ended(attempt)
        name = rng.choice(NAMES)
        work_s = slowness * rng.uniform(1, spread)
        attempt = health.sent(name, 1.0 + max(0.0, free_at[name] - now) / slowness)
        free_at[name] = max(free_at[name], now) + work_s
        watch.wait(attempt, lambda: None)
        running.append((free_at[name], attempt))
        if slowness < 10:  # slower ones are silent for longer than a request may be
            assert watch.stalled(NAMES) == []
