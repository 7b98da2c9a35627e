"""When replicas have room, and when a request can be expected to begin."""

from typing import Any

import pytest
from tests.fakes.fake_presence import new_record

from octavo_protocol.keys import Keys
from octavo_router.admission.expected import DrainRate, prefill_seconds
from octavo_router.admission.room import has_room
from octavo_router.decisions import PromptKey
from octavo_router.deployment import Deployment
from octavo_router.load_tracker import LoadTracker
from octavo_router.prefix_index import IndexBudget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_free_place_and_a_short_queue_are_room() -> None:
    loads = LoadTracker(Clock())
    record = new_record("a", max_num_seqs=2, prefill_tokens_per_s=100.0)
    assert has_room([record], loads)
    assert not has_room([record], loads, num_granted=2)
    assert not has_room([record], loads, num_granted_tokens=300)
    ticket = loads.sent(record.incarnation, 299)
    assert has_room([record], loads)
    assert not has_room([record], loads, backlog_s=2.9)
    loads.sent(record.incarnation, 0)
    assert not has_room([record], loads)
    loads.ended(record.incarnation, ticket)
    assert has_room([record], loads)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"running": 1, "waiting": 2}, True),
        ({"running": 2, "waiting": 2}, False),
        ({"kv_usage": 0.94}, True),
        ({"kv_usage": 0.95}, False),
        ({"max_num_seqs": 0, "running": 999, "kv_usage": 1.0}, True),  # at a fixed address
    ],
)
def test_what_the_record_says_counts(fields: dict[str, Any], expected: bool) -> None:
    assert has_room([new_record("a", **{"max_num_seqs": 4, **fields})], LoadTracker()) is expected


def test_what_has_ended_since_the_record_leaves_room_at_once() -> None:
    clock = Clock()
    loads = LoadTracker(clock)
    record = new_record("a", max_num_seqs=4, running=4)
    assert not has_room([record], loads)  # others' requests
    tickets = [loads.sent(record.incarnation, 0) for _ in range(3)]
    assert loads.num_busy(record.incarnation, 4) == 4
    for ticket in tickets:
        loads.ended(record.incarnation, ticket)
    assert loads.num_busy(record.incarnation, 4) == 1
    assert has_room([record], loads)
    clock.now += 2.0
    assert loads.num_busy(record.incarnation, 4) == 1
    clock.now += 2.0  # no record is so old: what it tells is others'
    assert not has_room([record], loads)


def test_background_work_takes_room_from_its_like_alone() -> None:
    full = {"max_num_seqs": 4, "running": 4, "waiting": 2, "kv_usage": 0.99}
    busy = new_record("a", **full, background_running=4, background_waiting=2)
    assert has_room([busy], LoadTracker())
    assert not has_room([busy], LoadTracker(), LoadTracker())
    assert not has_room([new_record("a", **full)], LoadTracker())
    background = LoadTracker()
    idle = new_record("a", max_num_seqs=1, prefill_tokens_per_s=100.0)
    assert has_room([idle], LoadTracker(), background)
    background.sent(idle.incarnation, 10)
    assert has_room([idle], LoadTracker())
    assert not has_room([idle], LoadTracker(), background)


def test_one_replica_with_room_is_enough_and_none_at_all_is_told_elsewhere() -> None:
    full = new_record("a", max_num_seqs=1, running=1)
    assert has_room([full, new_record("b", max_num_seqs=1)], LoadTracker())
    assert not has_room([full, full], LoadTracker())
    assert has_room([], LoadTracker())


def test_the_first_token_is_expected_where_it_is_soonest() -> None:
    deployment = Deployment(Keys("n", "d"), budget=IndexBudget(2**20))
    key = PromptKey(num_tokens=1000)
    assert prefill_seconds(deployment, None, key) is None
    slow = new_record("slow", prefill_tokens_per_s=100.0)
    fast = new_record("fast", prefill_tokens_per_s=1000.0)
    deployment.replicas.replace([new_record("unmeasured", prefill_tokens_per_s=0.0)])
    assert prefill_seconds(deployment, None, key) is None
    deployment.replicas.replace([slow, fast])
    assert prefill_seconds(deployment, None, key) == 1.0
    deployment.loads.sent(fast.incarnation, 20_000)
    assert prefill_seconds(deployment, None, key) == 10.0
    assert prefill_seconds(deployment, None, PromptKey()) is None


def test_a_queue_s_speed_is_that_of_its_last_ten_seconds() -> None:
    drain = DrainRate()
    drain.begin(0.0)
    assert drain.seconds(1000, 5.0) is None
    drain.left(5.0, 500)
    assert drain.seconds(1000, 5.0) == 10.0
    drain.left(16.0, 2000)
    assert drain.seconds(1000, 16.0) == 5.0
    drain.begin(20.0)
    assert drain.seconds(1000, 21.0) is None
