"""One suite for both stores of limits, and one random course of events that both judge alike."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import redis.asyncio

from octavo.local.redis_server import EmbeddedRedis
from octavo_router.tenancy.limits import LEASE_S, LimitStore, MemoryLimits, Verdict
from octavo_router.tenancy.redis_limits import RedisLimits
from octavo_router.tenancy.tenant import Limits, Tenant

pytestmark = pytest.mark.integration

NOON = 1_767_268_800.0  # 2026-01-01 12:00 UTC


@dataclass
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A store under a clock that stands still."""

    store: LimitStore
    clock: Clock
    permits: list[str] = field(default_factory=list)

    async def admit(self, tenant: Tenant, num_tokens: int = 1) -> Verdict:
        self.permits.append(f"p{len(self.permits)}")
        return await self.store.admit(tenant, self.permits[-1], num_tokens)

    async def reasons(self, tenant: Tenant, num_tokens: int, times: int) -> list[str | None]:
        return [(await self.admit(tenant, num_tokens)).reason for _ in range(times)]


@pytest.fixture(params=["memory", "redis"])
async def bench(
    request: pytest.FixtureRequest, redis_server: EmbeddedRedis
) -> AsyncIterator[Bench]:
    clock = Clock()
    if request.param == "memory":
        yield Bench(MemoryLimits(clock), clock)
        return
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        yield Bench(RedisLimits(client, clock), clock)


def limited(**limits: int) -> Tenant:
    return Tenant("acme", limits=Limits(**limits))


async def test_a_minute_s_requests_may_come_at_once_and_then_one_by_one(bench: Bench) -> None:
    tenant = limited(requests_per_minute=7)
    assert await bench.reasons(tenant, 1, 8) == [None] * 7 + ["requests_per_minute"]
    refused = await bench.admit(tenant)
    assert refused.retry_after_s == pytest.approx(60 / 7, abs=0.001)
    assert refused.remaining_requests == 0
    assert refused.reset_requests_s == pytest.approx(60, abs=0.001)
    bench.clock.now += 60 / 7 + 0.001
    assert await bench.reasons(tenant, 1, 2) == [None, "requests_per_minute"]
    bench.clock.now += 60
    verdict = await bench.admit(tenant)
    assert (verdict.reason, verdict.remaining_requests) == (None, 6)


async def test_tokens_are_reserved_and_what_was_not_used_comes_back(bench: Bench) -> None:
    tenant = limited(tokens_per_minute=1000)
    first = await bench.admit(tenant, 900)
    assert (first.reason, first.remaining_tokens) == (None, 100)
    assert first.reset_tokens_s == pytest.approx(54)
    refused = await bench.admit(tenant, 200)
    assert refused.reason == "tokens_per_minute"
    assert refused.retry_after_s == pytest.approx(6)
    await bench.store.settle(tenant, "p0", 900, 300)
    assert (await bench.admit(tenant, 200)).remaining_tokens == 500
    await bench.store.settle(tenant, "p2", 200, 600)
    assert (await bench.admit(tenant, 0)).remaining_tokens == 100


async def test_a_request_larger_than_the_minute_s_tokens_waits_for_all_of_them(
    bench: Bench,
) -> None:
    tenant = limited(tokens_per_minute=1000)
    assert await bench.reasons(tenant, 5000, 2) == [None, "tokens_per_minute"]
    bench.clock.now += 60
    assert await bench.reasons(tenant, 5000, 1) == [None]


async def test_concurrency_counts_open_requests_until_they_end_or_their_lease_does(
    bench: Bench,
) -> None:
    tenant = limited(concurrency=2)
    assert await bench.reasons(tenant, 1, 3) == [None, None, "concurrency"]
    await bench.store.settle(tenant, "p0", 1, 1)
    assert await bench.reasons(tenant, 1, 2) == [None, "concurrency"]
    bench.clock.now += LEASE_S - 1
    await bench.store.renew(tenant, ["p1", "p-of-nobody"])
    bench.clock.now += 2
    assert await bench.reasons(tenant, 1, 2) == [None, "concurrency"]


async def test_a_request_that_has_ended_leaves_its_place_before_it_is_settled(
    bench: Bench,
) -> None:
    tenant = limited(concurrency=1, tokens_per_day=100)
    assert await bench.reasons(tenant, 40, 2) == [None, "concurrency"]
    store = bench.store
    assert (await store.admit(tenant, "next", 40, ["p0", "unknown"])).reason is None
    assert (await store.admit(tenant, "third", 10, ["p0"])).reason == "concurrency"
    assert (await store.admit(tenant, "third", 40, ["p0", "next"])).reason == "tokens_per_day"
    await store.settle(tenant, "p0", 40, 0)
    assert (await store.admit(tenant, "third", 40, ["next"])).reason is None


async def test_budgets_hold_what_is_reserved_and_begin_anew(bench: Bench) -> None:
    tenant = limited(tokens_per_day=1000, tokens_per_month=1500)
    assert await bench.reasons(tenant, 600, 2) == [None, "tokens_per_day"]
    await bench.store.settle(tenant, "p0", 600, 900)
    refused = await bench.admit(tenant, 101)
    assert (refused.reason, refused.retry_after_s) == ("tokens_per_day", 12 * 3600)
    assert (await bench.admit(tenant, 100)).reason is None
    bench.clock.now += LEASE_S  # its router died: nothing of it was used
    assert (await bench.admit(tenant, 100)).reason is None
    await bench.store.settle(tenant, "p4", 100, 0)
    bench.clock.now += 24 * 3600
    refused = await bench.admit(tenant, 601)
    assert (refused.reason, refused.retry_after_s) == (
        "tokens_per_month",
        30 * 24 * 3600 - 12 * 3600 - LEASE_S,
    )
    assert (await bench.admit(tenant, 600)).reason is None


async def test_a_refused_request_takes_nothing(bench: Bench) -> None:
    tenant = limited(requests_per_minute=10, tokens_per_minute=100, concurrency=5)
    await bench.admit(tenant, 90)
    await bench.reasons(tenant, 50, 20)
    assert (await bench.admit(tenant, 10)).remaining_requests == 8


async def test_tenants_do_not_meet(bench: Bench) -> None:
    limits = Limits(concurrency=1)
    for name in ("a", "b"):
        verdicts = await bench.reasons(Tenant(name, limits=limits), 1, 2)
        assert verdicts == [None, "concurrency"]


@pytest.mark.parametrize("seed", range(3))
async def test_both_stores_judge_alike(redis_server: EmbeddedRedis, seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    tenant = limited(
        requests_per_minute=30,
        tokens_per_minute=700,
        concurrency=5,
        tokens_per_day=3000,
        tokens_per_month=7000,
    )
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        stores: list[LimitStore] = [MemoryLimits(clock), RedisLimits(client, clock)]
        reserved: dict[str, int] = {}
        reasons = set()
        for number in range(400):
            clock.now += round(chance.expovariate(1 / 2), 3) + (40_000 if number % 50 == 49 else 0)
            match chance.choice(["admit", "admit", "settle", "renew"]):
                case "admit":
                    permit, tokens = f"p{number}", chance.randrange(120)
                    first, second = [await each.admit(tenant, permit, tokens) for each in stores]
                    assert first == second
                    reasons.add(first.reason)
                    if first.reason is None:
                        reserved[permit] = tokens
                case "settle" if reserved:
                    permit = chance.choice(sorted(reserved))
                    tokens, actual = reserved.pop(permit), chance.randrange(180)
                    for each in stores:
                        await each.settle(tenant, permit, tokens, actual)
                case "renew" if reserved:
                    permit = chance.choice(sorted(reserved))
                    for each in stores:
                        await each.renew(tenant, [permit])
        assert len(reasons) >= 3
