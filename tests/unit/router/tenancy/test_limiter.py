"""Redis away is no reason to refuse; what a refusal says."""

from collections.abc import Collection

import pytest
import redis.exceptions

from octavo_protocol.errors import RateLimitError
from octavo_router.tenancy.limiter import Limiter, duration
from octavo_router.tenancy.limits import MemoryLimits, Verdict
from octavo_router.tenancy.tenant import Limits, Tenant

ACME = Tenant("acme", limits=Limits(requests_per_minute=2, tokens_per_minute=600))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Unsteady(MemoryLimits):
    """A store that can be away. num_asked: how often it was tried."""

    is_away = False
    num_asked = 0

    async def admit(
        self, tenant: Tenant, permit: str, num_tokens: int, ended: Collection[str] = ()
    ) -> Verdict:
        self.num_asked += 1
        if self.is_away:
            raise redis.exceptions.ConnectionError("gone")
        return await super().admit(tenant, permit, num_tokens, ended)


async def test_while_redis_is_away_it_is_asked_once_a_second_and_local_limits_hold() -> None:
    clock, shared, local = Clock(), Unsteady(Clock()), MemoryLimits(Clock())
    limiter = Limiter(shared, local, clock)
    assert (await limiter.admit(ACME, 1)).store is shared
    shared.is_away = True
    permits = [await limiter.admit(ACME, 1) for _ in range(2)]
    assert [each.store for each in permits] == [local, local]
    assert (limiter.is_degraded, shared.num_asked) == (True, 2)
    with pytest.raises(RateLimitError):
        await limiter.admit(ACME, 1)
    shared.is_away = False
    clock.now += 1.1
    assert (await limiter.admit(ACME, 1)).store is shared
    assert not limiter.is_degraded


async def test_the_next_request_may_come_before_the_last_one_is_settled() -> None:
    tenant = Tenant("one", limits=Limits(concurrency=1))
    store = MemoryLimits(Clock())
    limiter = Limiter(store, MemoryLimits())
    for _ in range(3):
        permit = await limiter.admit(tenant, 1)
        with pytest.raises(RateLimitError):
            await limiter.admit(tenant, 1)
        limiter.ended(permit)
    await store.settle(tenant, permit.id, 1, 1)
    limiter.settled(permit)
    await limiter.admit(tenant, 1)


async def test_a_tenant_without_limits_costs_no_question() -> None:
    shared = Unsteady()
    permit = await Limiter(shared, MemoryLimits()).admit(Tenant("free"), 10**9)
    assert (permit.store, permit.headers, shared.num_asked) == (None, {}, 0)


async def test_answers_and_refusals_say_what_is_left() -> None:
    limiter = Limiter(None, MemoryLimits(Clock()))
    assert (await limiter.admit(ACME, 60)).headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "540",
        "x-ratelimit-reset-tokens": "6s",
    }
    with pytest.raises(RateLimitError) as raised:
        await limiter.admit(ACME, 600)
    error = raised.value
    assert error.message == (
        "the limit of tenant acme, tokens_per_minute=600, allows no further request now; this one"
        " is counted as 600 tokens; try again in 6s"
    )
    assert (error.code, error.headers["retry-after"]) == ("rate_limit_exceeded", "6")
    assert error.headers["x-octavo-reason"] == "tokens_per_minute"
    assert error.headers["x-ratelimit-remaining-tokens"] == "540"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.5, "1m0s"), (62, "1m2s"), (3600, "1h0m0s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text
