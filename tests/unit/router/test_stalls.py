"""Who waits for a silent replica goes elsewhere; who waits for a slow one stays."""

import pytest

from octavo_router.health import Attempt
from octavo_router.stalls import StallWatch


class Watched:
    """A watch whose clock is set by hand; moved: attempts that were ended."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = StallWatch(lambda: self.now)
        self.watch.keep({"a", "b"})
        self.moved: list[Attempt] = []

    def wait(
        self,
        name: str,
        *,
        expected_s: float = 1.0,
        is_stream: bool = True,
        is_trial: bool = False,
    ) -> Attempt:
        attempt = Attempt(name, expected_s, self.now, is_stream, is_trial)
        self.watch.wait(attempt, lambda: self.moved.append(attempt))
        return attempt

    def stalled(self, at: float, *usable: str) -> list[Attempt]:
        self.now = at
        return self.watch.stalled(usable)


@pytest.mark.parametrize(
    ("expected_s", "is_trial", "patience_s"), [(1.0, False, 15), (4.0, False, 30), (1.0, True, 4)]
)
def test_patience_grows_with_what_was_expected(
    expected_s: float, is_trial: bool, patience_s: float
) -> None:
    given = Watched()
    attempt = given.wait("a", expected_s=expected_s, is_trial=is_trial)
    assert given.stalled(patience_s, "a", "b") == []
    assert given.stalled(patience_s + 0.1, "a", "b") == [attempt]


def test_a_replica_that_sends_anything_is_not_silent() -> None:
    given = Watched()
    attempt = given.wait("a")
    for second in range(0, 100, 14):
        assert given.stalled(second, "a", "b") == []
        given.watch.heard("a")
    assert given.stalled(98 + 15.1, "a", "b") == [attempt]


def test_an_idle_time_before_the_request_is_no_silence() -> None:
    given = Watched()
    given.watch.heard("a")
    given.now = 100.0
    given.wait("a")
    assert given.stalled(110.0, "a", "b") == []


def test_nobody_moves_where_all_are_silent() -> None:
    given = Watched()
    given.wait("a")
    given.wait("b")
    assert given.stalled(60.0, "a", "b") == []
    given.watch.heard("b")
    assert [each.incarnation for each in given.stalled(61.0, "a", "b")] == ["a"]


def test_nobody_moves_without_another_replica() -> None:
    given = Watched()
    given.wait("a")
    assert given.stalled(1000.0, "a") == given.stalled(1000.0) == []


def test_whole_answers_move_when_the_heartbeats_have_ended_too() -> None:
    given = Watched()
    whole = given.wait("a", is_stream=False)
    assert given.stalled(1000.0, "a", "b") == []
    given.watch.keep({"b"})
    assert given.stalled(1000.0, "b") == [whole]
    given.watch.heard("a")  # a stream that still runs there
    assert given.stalled(1014.0, "b") == []


def test_whole_answers_that_are_awaited_make_no_replica_silent() -> None:
    given = Watched()
    stream = given.wait("a")
    given.wait("b", is_stream=False)
    assert given.stalled(1000.0, "a", "b") == [stream]


def test_attempts_that_are_done_or_given_up_wait_no_more() -> None:
    given = Watched()
    first, second = given.wait("a"), given.wait("a")
    given.watch.done(first)
    assert given.stalled(60.0, "b") == [second]
    given.watch.give_up(second)
    assert (given.moved, given.watch.num_waiting) == ([second], 0)
    given.watch.done(second)


def test_what_was_heard_of_replicas_that_are_gone_is_forgotten() -> None:
    given = Watched()
    given.watch.heard("a")
    given.watch.heard("b")
    given.watch.keep({"b"})
    assert given.watch._heard_at == {"b": 0.0}
