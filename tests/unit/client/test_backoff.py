"""Delays before a process is started again."""

from octavo.local.backoff import Backoff


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=0.5, longest_s=3.0)

    assert [backoff.next_delay_s(0.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_long_good_run_starts_over() -> None:
    backoff = Backoff(first_s=0.5, good_run_s=60.0)
    for _ in range(4):
        backoff.next_delay_s(1.0)

    assert backoff.next_delay_s(61.0) == 0.5


def test_thousands_of_failures_do_not_overflow() -> None:
    assert Backoff(num_failures=100_000).next_delay_s(0.0) == 30.0
