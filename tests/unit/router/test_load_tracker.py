"""The router's own requests and the replica's record, combined."""

from octavo_router.load_tracker import LoadTracker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def tracker() -> LoadTracker:
    return LoadTracker(Clock())


def test_a_burst_shows_before_the_record_does() -> None:
    loads = tracker()
    loads.record("i", waiting_tokens=0, running=0)
    for _ in range(3):
        loads.sent("i", 100)
    assert loads.num_queued_tokens("i") == 300
    assert loads.num_running("i") == 3


def test_what_the_record_already_shows_is_not_counted_twice() -> None:
    loads = tracker()
    loads.sent("i", 50)
    loads.record("i", waiting_tokens=50, running=1)
    assert loads.num_queued_tokens("i") == 50
    assert loads.num_running("i") == 1


def test_others_in_the_record_and_own_after_it_add_up() -> None:
    loads = tracker()
    loads.record("i", waiting_tokens=900, running=7)
    loads.sent("i", 10)
    assert loads.num_queued_tokens("i") == 910
    assert loads.num_running("i") == 7


def test_a_first_token_takes_its_prompt_out_of_an_older_record() -> None:
    loads = tracker()
    ticket = loads.sent("i", 100)
    loads.record("i", waiting_tokens=100, running=0)
    loads.first_token("i", ticket)
    assert loads.num_queued_tokens("i") == 0
    assert loads.num_running("i") == 1


def test_an_ended_request_leaves_nothing() -> None:
    loads = tracker()
    loads.record("i", waiting_tokens=0, running=0)
    ticket = loads.sent("i", 100)
    loads.ended("i", ticket)
    assert loads.num_queued_tokens("i") == 0
    assert loads.num_running("i") == 0


def test_a_request_of_a_dropped_replica_ends_without_harm() -> None:
    loads = tracker()
    ticket = loads.sent("i", 100)
    loads.drop("i")
    loads.first_token("i", ticket)
    loads.ended("i", ticket)
    assert loads.num_queued_tokens("i") == 0


def test_a_later_record_ends_the_wait_for_whole_answers() -> None:
    """Their first token is not seen; counting their prompts until they end would count twice."""
    clock = Clock()
    loads = LoadTracker(clock)
    loads.sent("i", 1000)
    clock.now += 5
    loads.record("i", waiting_tokens=0, running=1)
    assert loads.num_queued_tokens("i") == 0
    assert loads.num_running("i") == 1


def test_a_request_sent_just_before_a_record_still_counts() -> None:
    """The record may have been made before the request arrived there."""
    loads = tracker()
    loads.sent("i", 1000)
    loads.record("i", waiting_tokens=0, running=0)
    assert loads.num_queued_tokens("i") == 1000


def test_an_old_request_does_not_count_against_a_replica_that_came_back() -> None:
    loads = tracker()
    ticket = loads.sent("i", 100)
    loads.drop("i")
    loads.sent("i", 10)
    loads.ended("i", ticket)
    assert loads.num_running("i") == 1


def test_what_was_sent_of_late_fades_within_minutes() -> None:
    clock = Clock()
    loads = LoadTracker(clock)
    loads.sent("i", 1000)
    loads.sent("i", 500)
    assert loads.num_recent_tokens("i") == 1500
    clock.now += 60
    assert loads.num_recent_tokens("i") == 552
    clock.now += 600
    assert loads.num_recent_tokens("i") == 0
    assert loads.num_recent_tokens("unknown") == 0
