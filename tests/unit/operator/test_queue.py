"""The queue on a clock, and how failures are spaced."""

import asyncio

import pytest

from octavo_operator.queue import FIRST_BACKOFF_S, MAX_BACKOFF_S, Key, ReconcileQueue, Schedule

A, B = Key("default", "a"), Key("default", "b")


def test_many_changes_are_one_turn() -> None:
    schedule = Schedule()
    for due in (0.3, 0.1, 0.2):
        schedule.add(A, due)
    assert schedule.take(0.05) is None
    assert schedule.take(0.1) == A
    schedule.finish(A, 0.2)
    assert schedule.next_due is None


def test_a_change_during_a_turn_leads_to_another_turn_after_it() -> None:
    schedule = Schedule()
    schedule.add(A, 0)
    assert schedule.take(0) == A
    schedule.add(A, 1)
    assert schedule.take(10) is None, "never two turns of one deployment at once"
    schedule.finish(A, 10)
    assert schedule.take(10) == A


def test_a_turn_in_progress_does_not_hold_up_others() -> None:
    schedule = Schedule()
    schedule.add(A, 0)
    schedule.add(B, 0)
    assert {schedule.take(0), schedule.take(0)} == {A, B}


def test_failures_are_retried_later_and_later_up_to_a_bound_and_success_starts_anew() -> None:
    schedule, now, delays = Schedule(), 0.0, []
    schedule.add(A, 0)
    for _ in range(9):
        assert schedule.take(now) == A
        delays.append(schedule.fail(A, now))
        now += delays[-1]
    assert delays == [min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**n) for n in range(9)]
    assert schedule.take(now) == A
    schedule.finish(A, now)
    schedule.add(A, now)
    assert schedule.take(now) == A
    assert schedule.fail(A, now) == FIRST_BACKOFF_S


def test_turns_before_a_retry_is_due_do_not_put_it_off() -> None:
    schedule = Schedule()
    schedule.add(A, 0)
    assert schedule.take(0) == A
    assert schedule.fail(A, 0) == 1.0
    for now in (0.25, 0.5):
        schedule.add(A, now)
        assert schedule.take(now) == A
        assert schedule.fail(A, now) == 1.0 - now
    assert schedule.next_due == 1.0


async def test_a_worker_that_waits_wakes_up_for_an_earlier_turn() -> None:
    queue = ReconcileQueue()
    queue.add(A, 3600)
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add(B, 0)
    assert await asyncio.wait_for(waiting, 5) == B


async def test_each_of_several_waiting_workers_gets_a_turn() -> None:
    queue = ReconcileQueue()
    workers = [asyncio.create_task(queue.take()) for _ in range(3)]
    await asyncio.sleep(0)
    keys = {Key("default", str(number)) for number in range(3)}
    for key in keys:
        queue.add(key, 0.01)
    assert set(await asyncio.wait_for(asyncio.gather(*workers), 5)) == keys
    assert (queue.num_running, len(queue)) == (3, 0)


async def test_closing_ends_the_workers_that_wait_and_begins_no_turn() -> None:
    queue = ReconcileQueue()
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add(A, 0)
    queue.close()
    assert await asyncio.wait_for(waiting, 5) is None
    assert await queue.take() is None


@pytest.mark.parametrize("seconds", [0.0, 30.0])
async def test_the_oldest_turn_is_timed(seconds: float) -> None:
    now = 0.0
    queue = ReconcileQueue(clock=lambda: now)
    assert queue.longest_turn_s == 0
    queue.add(A, 0)
    await queue.take()
    now = seconds
    assert queue.longest_turn_s == seconds
    assert queue.fail(A) == FIRST_BACKOFF_S
    assert queue.longest_turn_s == 0
