"""The gate under random arrivals and departures: nobody is lost or let in twice, nor too many."""

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.fakes.fake_presence import new_record

from octavo_protocol.errors import UnavailableError
from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_router.admission.fair_queue import FairQueue, Waiter
from octavo_router.admission.gate import Gate
from octavo_router.admission.metrics import AdmissionMetrics
from octavo_router.load_tracker import LoadTracker
from octavo_router.replicas import ReplicaSet


@dataclass
class Fleet:
    """Replicas that run so many sequences each; inside: who has been let in and has not left."""

    num_replicas: int
    max_num_seqs: int
    max_requests: int = 10
    inside: set[int] = field(default_factory=set)
    entered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    most: int = 0

    def __post_init__(self) -> None:
        self.replicas, self.loads = ReplicaSet(), LoadTracker()
        self.background_loads = LoadTracker()
        self.records = [
            new_record(f"r{number}", max_num_seqs=self.max_num_seqs)
            for number in range(self.num_replicas)
        ]
        self.replicas.replace(self.records)
        self.queue = FairQueue(max_requests=self.max_requests, max_tokens=10_000)
        metrics = AdmissionMetrics(CollectorRegistry())
        self.gate = Gate(
            "d",
            self.replicas,
            self.loads,
            self.background_loads,
            self.queue,
            metrics,
            backlog_s=3,
        )

    async def request(self, number: int, waiter: Waiter, seconds: int) -> None:
        """Comes, waits, is sent to the emptiest replica, and ends; or is refused, or leaves."""
        try:
            async with self.gate.turn(waiter, give_up_s=None):
                assert number not in self.entered
                self.entered.append(number)
                record = min(self.records, key=lambda r: self.loads.num_running(r.incarnation))
                ticket = self.loads.sent(record.incarnation, 1)
                self.inside.add(number)
                self.most = max(self.most, len(self.inside))
                try:
                    for _ in range(seconds):
                        await asyncio.sleep(0)
                finally:
                    self.inside.discard(number)
                    self.loads.ended(record.incarnation, ticket)
        except UnavailableError as error:
            if error.headers["x-octavo-reason"] == "queue_full":
                self.refused.append(number)
        except asyncio.CancelledError:
            self.left.append(number)
            raise


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    num_replicas=st.integers(1, 3),
    max_num_seqs=st.integers(1, 3),
    num_requests=st.integers(1, 60),
)
def test_every_request_goes_on_once_or_is_told(
    seed: int, num_replicas: int, max_num_seqs: int, num_requests: int
) -> None:
    chance = random.Random(seed)

    async def scenario() -> Fleet:
        fleet = Fleet(num_replicas, max_num_seqs)
        tasks = []
        for number in range(num_requests):
            waiter = Waiter(
                chance.choice("abc"),
                chance.randrange(2000),
                chance.choice([0.5, 1, 4]),
                chance.randrange(-1, 2),
            )
            tasks.append(asyncio.create_task(fleet.request(number, waiter, chance.randrange(6))))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            fleet.queue.check()
            if chance.random() < 0.2:
                chance.choice(tasks).cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        errors = [each.exception() for each in tasks if not each.cancelled()]
        assert errors == [None] * len(errors)
        fleet.gate.close()
        return fleet

    fleet = asyncio.run(scenario())
    told = {*fleet.entered, *fleet.refused, *fleet.left}
    never_begun = num_requests - len(told)  # cancelled before its first step
    assert never_begun >= 0
    assert not set(fleet.entered) & set(fleet.refused)
    assert fleet.most <= num_replicas * max_num_seqs
    assert not fleet.inside
    assert fleet.queue.num_requests == fleet.queue.num_tokens == 0
    assert fleet.gate.num_pending == 0


async def test_who_makes_place_is_told_so_and_the_newcomer_waits() -> None:
    fleet = Fleet(1, 1, max_requests=2)
    blocker = asyncio.create_task(fleet.request(0, Waiter("a", 1), 10**9))
    low = [asyncio.create_task(fleet.request(n, Waiter("a", 1), 0)) for n in (1, 2)]
    await asyncio.sleep(0)
    high = asyncio.create_task(fleet.request(3, Waiter("b", 1, priority=-1), 0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert fleet.refused == [2]
    blocker.cancel()
    await asyncio.gather(*low, high)
    assert fleet.entered == [0, 3, 1]
    with suppress(asyncio.CancelledError):
        await blocker
    fleet.gate.close()


async def test_a_wait_that_takes_too_long_ends_with_its_reason() -> None:
    fleet = Fleet(1, 1)
    blocker = asyncio.create_task(fleet.request(0, Waiter("a", 1), 10**9))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match=r"waited 0\.010 s") as raised:
        async with fleet.gate.turn(Waiter("a", 1), give_up_s=0.01):
            raise AssertionError("there was no room")
    assert raised.value.headers["x-octavo-reason"] == "deadline"
    assert fleet.gate.num_pending == fleet.queue.num_requests == 0
    blocker.cancel()
    with suppress(asyncio.CancelledError):
        await blocker
    fleet.gate.close()


async def test_who_comes_before_those_that_wait_does_not_wait_for_them() -> None:
    """Batches keep every place taken, and are preempted for others."""
    fleet = Fleet(1, 2)
    record = fleet.records[0]
    tickets = [fleet.background_loads.sent(record.incarnation, 1) for _ in range(2)]
    background = asyncio.create_task(
        fleet.request(0, Waiter("a", 1, priority=BACKGROUND_PRIORITY), 0)
    )
    await asyncio.sleep(0)
    assert fleet.queue.num_requests == 1
    await fleet.request(1, Waiter("a", 1), 0)
    assert fleet.entered == [1]
    fleet.background_loads.ended(record.incarnation, tickets[0])
    await background
    assert fleet.entered == [1, 0]
    fleet.gate.close()
