"""A sick replica is left alone for a while; what ails all of them changes nothing."""

import pytest

from octavo_router.health import Attempt, Cause, ReplicaHealth

NAMES = ("a", "b", "c", "d")


class Fleet:
    """Replicas under a clock that stands still unless told."""

    def __init__(self, *names: str, max_share: float = 0.5) -> None:
        self.now = 0.0
        self.health = ReplicaHealth(lambda: self.now, max_share=max_share)
        self.health.keep(names)

    def send(self, name: str, expected_s: float = 1.0) -> Attempt:
        return self.health.sent(name, expected_s)

    def fail(self, name: str, cause: Cause = Cause.ERRORS) -> Cause | None:
        attempt = self.send(name)
        try:
            return self.health.failed(attempt, cause)
        finally:
            self.health.ended(attempt)

    def answer(self, name: str) -> None:
        attempt = self.send(name)
        self.health.answered(attempt)
        self.health.ended(attempt)

    def stream(self, name: str, *, took_s: float, expected_s: float) -> Cause | None:
        attempt = self.send(name, expected_s)
        self.now += took_s
        cause = self.health.first_byte(attempt)
        self.health.answered(attempt)
        self.health.ended(attempt)
        return cause

    def out(self) -> dict[str, Cause]:
        found = {name: self.health.ejected(name) for name in NAMES}
        return {name: cause for name, cause in found.items() if cause is not None}


def test_five_errors_in_a_row_eject_while_others_answer() -> None:
    fleet = Fleet(*NAMES)
    assert [fleet.fail("a") for _ in range(5)] == [None] * 4 + [Cause.ERRORS]
    assert fleet.out() == {"a": Cause.ERRORS}


def test_an_answer_in_between_begins_the_row_again() -> None:
    fleet = Fleet(*NAMES)
    for _ in range(4):
        fleet.fail("a")
    fleet.answer("a")
    assert [fleet.fail("a") for _ in range(4)] == [None] * 4


def test_errors_of_all_replicas_eject_none() -> None:
    fleet = Fleet(*NAMES)
    causes = [fleet.fail(name) for _ in range(60) for name in NAMES]
    assert set(causes) == {None}


def test_a_replica_that_fails_more_often_than_others_is_ejected() -> None:
    fleet = Fleet(*NAMES)
    causes = []
    for _ in range(10):
        for name in ("b", "c", "d"):
            fleet.answer(name)
        fleet.answer("a")
        causes.append(fleet.fail("a"))
    assert causes == [None] * 9 + [Cause.FAILURES]


@pytest.mark.parametrize("took_s", [5.0, 50.0])
def test_first_bytes_far_later_than_expected_eject(took_s: float) -> None:
    fleet = Fleet(*NAMES)
    for name in ("b", "c"):
        for _ in range(8):
            assert fleet.stream(name, took_s=1.0, expected_s=1.0) is None
    causes = [fleet.stream("a", took_s=took_s, expected_s=1.0) for _ in range(8)]
    assert causes == [None] * 7 + [Cause.SLOW]


@pytest.mark.parametrize(
    ("took_s", "expected_s"),
    [(0.9, 0.1), (39.0, 10.0)],
    ids=["late by less than a second", "less than four times as late"],
)
def test_first_bytes_that_are_a_little_late_do_not(took_s: float, expected_s: float) -> None:
    fleet = Fleet(*NAMES)
    for name in ("b", "c"):
        for _ in range(8):
            fleet.stream(name, took_s=expected_s, expected_s=expected_s)
    causes = [fleet.stream("a", took_s=took_s, expected_s=expected_s) for _ in range(16)]
    assert set(causes) == {None}


def test_a_fleet_that_is_slow_as_a_whole_is_not_sick() -> None:
    fleet = Fleet(*NAMES)
    causes = [fleet.stream(name, took_s=30.0, expected_s=1.0) for _ in range(20) for name in NAMES]
    assert set(causes) == {None}


def test_a_replica_alone_is_never_slow_or_wrong() -> None:
    fleet = Fleet("a")
    assert {fleet.stream("a", took_s=60.0, expected_s=0.1) for _ in range(20)} == {None}
    assert {fleet.fail("a", cause) for cause in (Cause.ERRORS, Cause.STALLED) * 30} == {None}


def test_at_most_a_share_is_ejected_unless_connections_break() -> None:
    fleet = Fleet(*NAMES)
    causes = [fleet.fail(name, Cause.STALLED) for name in NAMES]
    assert causes == [Cause.STALLED, Cause.STALLED, None, None]
    assert [fleet.fail(name, Cause.BROKEN) for name in ("c", "d")] == [Cause.BROKEN] * 2
    assert set(fleet.out()) == set(NAMES)
    assert Fleet(*NAMES, max_share=0.0).fail("a", Cause.STALLED) is None


def test_one_request_at_a_time_tries_a_replica_again() -> None:
    fleet = Fleet(*NAMES)
    fleet.fail("a", Cause.STALLED)
    fleet.now = 4.9
    assert fleet.out() == {"a": Cause.STALLED}
    fleet.now = 5.0
    assert fleet.out() == {}
    first = fleet.send("a")
    assert first.is_trial
    assert fleet.out() == {"a": Cause.STALLED}
    fleet.health.ended(first)  # its client left: nothing is known
    assert fleet.out() == {}
    second = fleet.send("a")
    fleet.health.first_byte(second)
    assert fleet.out() == {}


def test_a_long_answer_that_tries_a_replica_does_not_keep_others_from_it() -> None:
    fleet = Fleet(*NAMES)
    fleet.fail("a", Cause.STALLED)
    fleet.now = 5.0
    first = fleet.send("a")
    fleet.now = 9.9
    assert fleet.out() == {"a": Cause.STALLED}
    fleet.now = 10.0
    assert fleet.out() == {}
    second = fleet.send("a")
    assert second.is_trial
    assert fleet.out() == {"a": Cause.STALLED}
    assert fleet.health.failed(first, Cause.STALLED) is Cause.STALLED
    assert fleet.health.failed(second, Cause.STALLED) is None
    assert fleet.health.seconds_left("a") == 10.0


def test_a_connection_that_holds_is_not_broken() -> None:
    fleet = Fleet(*NAMES)
    fleet.fail("a", Cause.BROKEN)
    fleet.now = 0.5
    assert fleet.send("a").is_trial
    assert fleet.out() == {"a": Cause.BROKEN}
    fleet.now = 1.0
    assert not fleet.send("a").is_trial
    assert fleet.out() == {}


def test_ejections_grow_and_those_of_long_ago_are_forgotten() -> None:
    fleet = Fleet(*NAMES)
    lengths = []
    for _ in range(6):
        fleet.fail("a", Cause.STALLED)
        lengths.append(fleet.health.seconds_left("a"))
        fleet.now += lengths[-1]
    assert lengths == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    fleet.answer("a")
    fleet.now += 61.0
    fleet.fail("a", Cause.STALLED)
    assert fleet.health.seconds_left("a") == 5.0


def test_what_was_sent_before_an_ejection_neither_lengthens_nor_ends_it() -> None:
    fleet = Fleet(*NAMES)
    early = [fleet.send("a") for _ in range(3)]
    assert fleet.fail("a", Cause.BROKEN) is Cause.BROKEN
    fleet.now = 0.1
    assert fleet.health.failed(early[0], Cause.BROKEN) is None
    fleet.health.first_byte(early[1])
    fleet.health.answered(early[2])
    assert fleet.health.seconds_left("a") == pytest.approx(0.4)


def test_a_success_during_an_ejection_ends_it() -> None:
    """Requests go there all the same where nothing else is left."""
    fleet = Fleet("a")
    fleet.fail("a", Cause.BROKEN)
    fleet.now = 0.1
    fleet.answer("a")
    assert fleet.out() == {}


def test_heartbeats_and_new_neighbours_change_nothing() -> None:
    fleet = Fleet(*NAMES)
    fleet.fail("a", Cause.STALLED)
    fleet.health.keep([*NAMES, "e"])
    assert fleet.out() == {"a": Cause.STALLED}


def test_a_replica_that_is_gone_is_forgotten() -> None:
    fleet = Fleet(*NAMES)
    attempt = fleet.send("a")
    fleet.fail("a", Cause.STALLED)
    fleet.health.keep(["b"])
    assert fleet.health.failed(attempt, Cause.BROKEN) is None
    assert fleet.health.first_byte(attempt) is None
    fleet.health.answered(attempt)
    fleet.health.ended(attempt)
    assert fleet.out() == {}
