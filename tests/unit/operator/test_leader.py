"""Leader election on a store of leases in memory and a clock that is turned by hand."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from octavo_operator.cluster import ApiError, ApiUnreachableError, JsonObject
from octavo_operator.leader import LEASE, Leader, LeadershipLostError, LeaseTimes

# Asyncio's own waits are real; the seconds that decide are the hand-turned clock's.
TIMES = LeaseTimes(duration_s=24, deadline_s=16, renew_s=0, retry_s=0)


class Store:
    """Leases as the API server keeps them: a write needs the version that was read."""

    def __init__(self) -> None:
        self.lease: JsonObject | None = None
        self.version = 0
        self.is_away = False
        self.calls: list[str] = []
        self.before_write: Callable[[], None] = lambda: None

    async def find(self, path: str) -> JsonObject | None:
        self._note("find", path, f"/{LEASE}")
        return self.lease

    async def create(self, path: str, manifest: JsonObject) -> JsonObject:
        self._note("create", path, "/leases")
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "exists")
        return self.put(manifest["spec"])

    async def replace(self, path: str, manifest: JsonObject) -> JsonObject:
        self._note("replace", path, f"/{LEASE}")
        self.before_write()
        if self.lease is None:
            raise ApiError(404, "NotFound", "not found")
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "changed")
        return self.put(manifest["spec"])

    def put(self, spec: dict[str, Any]) -> JsonObject:
        self.version += 1
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": dict(spec)}
        return self.lease

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])

    def _note(self, call: str, path: str, ending: str) -> None:
        assert path.startswith("/apis/coordination.k8s.io/v1/namespaces/octavo/leases")
        assert path.endswith(ending)
        self.calls.append(call)
        if self.is_away:
            raise ApiUnreachableError("away")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def leader(store: Store, clock: Clock, identity: str) -> Leader:
    return Leader(store, "octavo", identity, TIMES, clock)


async def leads_within(candidate: Leader, turns: int = 20) -> bool:
    """Whether it acquires the lease while the event loop goes round some times."""
    task = asyncio.create_task(candidate.acquire())
    for _ in range(turns):
        await asyncio.sleep(0)
    is_done = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return is_done


async def test_the_first_leads_and_the_second_waits(store: Store, clock: Clock) -> None:
    first, second = leader(store, clock, "one"), leader(store, clock, "two")
    assert await leads_within(first)
    assert not await leads_within(second)
    assert (store.holder, first.is_leading, second.is_leading) == ("one", True, False)


async def test_a_lease_that_nobody_writes_for_its_whole_duration_is_taken(
    store: Store, clock: Clock
) -> None:
    second = leader(store, clock, "two")
    assert await leads_within(leader(store, clock, "one"))
    assert not await leads_within(second)
    clock.now += 24
    assert not await leads_within(second), "it began to watch the lease 24 s ago, not before"
    clock.now += 0.1
    assert await leads_within(second)
    assert store.lease is not None
    assert (store.holder, store.lease["spec"]["leaseTransitions"]) == ("two", 1)


async def test_what_the_lease_says_of_time_is_not_believed(store: Store, clock: Clock) -> None:
    """Clocks of machines differ; a leader whose clock is far behind is alive all the same."""
    store.put(
        {"holderIdentity": "one", "leaseDurationSeconds": 24, "renewTime": "1970-01-01T00:00:00Z"}
    )
    assert not await leads_within(leader(store, clock, "two"))


async def test_a_released_lease_and_ones_own_are_taken_at_once(store: Store, clock: Clock) -> None:
    first = leader(store, clock, "one")
    assert await leads_within(first)
    assert await leads_within(leader(store, clock, "one")), "the container was started again"
    first = leader(store, clock, "one")
    assert await leads_within(first)
    await first.release()
    assert (store.holder, first.is_leading) == ("", False)
    assert await leads_within(leader(store, clock, "two"))


async def test_of_two_that_find_a_free_lease_one_gets_it(store: Store, clock: Clock) -> None:
    store.put({"holderIdentity": ""})

    def take_away() -> None:
        store.before_write = lambda: None
        store.put({"holderIdentity": "two", "leaseDurationSeconds": 24})

    store.before_write = take_away
    first = leader(store, clock, "one")
    assert not await leads_within(first)
    assert (store.holder, first.is_leading) == ("two", False)


async def test_renewing_is_one_call(store: Store, clock: Clock) -> None:
    first = leader(store, clock, "one")
    await first.acquire()
    store.calls.clear()
    holding = asyncio.create_task(first.hold())
    while len(store.calls) < 5:
        await asyncio.sleep(0)
    holding.cancel()
    assert set(store.calls) == {"replace"}


async def test_a_leader_that_cannot_renew_stops_leading_before_another_may(
    store: Store, clock: Clock
) -> None:
    first = leader(store, clock, "one")
    await first.acquire()
    store.is_away = True
    holding = asyncio.create_task(first.hold())
    clock.now += 15.9
    await asyncio.sleep(0.01)
    assert (holding.done(), first.is_leading) == (False, True)
    clock.now += 0.1
    assert not first.is_leading
    with pytest.raises(LeadershipLostError, match="one could not renew"):
        await asyncio.wait_for(holding, 5)
    await first.release()
    assert store.holder == "one", "what is lost is not given back"


async def test_a_leader_whose_lease_was_taken_ends_at_the_next_renewal(
    store: Store, clock: Clock
) -> None:
    first = leader(store, clock, "one")
    await first.acquire()
    store.put({"holderIdentity": "two"})
    with pytest.raises(LeadershipLostError, match="two holds the lease now"):
        await asyncio.wait_for(first.hold(), 5)
    assert not first.is_leading


async def test_a_renewal_whose_answer_was_lost_is_no_loss_of_the_lease(
    store: Store, clock: Clock
) -> None:
    first = leader(store, clock, "one")
    await first.acquire()
    assert store.lease is not None
    store.put(store.lease["spec"])  # it was written, and we do not know the new version
    holding = asyncio.create_task(first.hold())
    before = store.version
    while store.version < before + 3 and not holding.done():
        await asyncio.sleep(0)
    assert (store.holder, first.is_leading) == ("one", True)
    holding.cancel()


async def test_a_lease_that_was_deleted_is_made_again(store: Store, clock: Clock) -> None:
    first = leader(store, clock, "one")
    await first.acquire()
    store.lease = None
    holding = asyncio.create_task(first.hold())
    while store.lease is None and not holding.done():
        await asyncio.sleep(0)
    assert (store.holder, first.is_leading) == ("one", True)
    holding.cancel()
