"""What tenants may use: rates, concurrency and budgets, as a store of one process.

`redis_limits.py` does the same in Redis, for all routers; one suite of tests holds for both.

Rates are leaky buckets that hold a minute's worth. Of each only the time at which it will be empty
is kept, so that a check costs one comparison. Source: the generic cell rate algorithm, ITU-T I.371.
A request reserves its estimated tokens when it is admitted and settles the actual ones at its end.
What it reserved of budget and concurrency lapses with its lease, which the router renews; what it
reserved of a rate drains like all else.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from octavo_router.tenancy.tenant import Limits, Tenant

LEASE_S = 60.0
MINUTE_US = 60_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may go on, and what is left.

    reason: None: it may; else the limit that forbids it. retry_after_s: when it may be tried again.
    remaining_*: None without a limit; reset_*_s: until nothing of it is used.
    """

    reason: str | None = None
    retry_after_s: float = 0.0
    remaining_requests: int | None = None
    reset_requests_s: float = 0.0
    remaining_tokens: int | None = None
    reset_tokens_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Period:
    """The days and months of budgets, in UTC. Names sort as time goes."""

    day: str
    month: str
    day_left_s: float
    month_left_s: float


class LimitStore(Protocol):
    async def admit(
        self, tenant: Tenant, permit: str, num_tokens: int, ended: Collection[str] = ()
    ) -> Verdict:
        """Reserves all or nothing. permit: names the request in the calls that follow. ended:
        requests that are over and not settled yet: they do not count as open.
        """

    async def settle(self, tenant: Tenant, permit: str, reserved: int, actual: int) -> None:
        """The request has ended. reserved: what it was admitted with; 0 where nothing was."""

    async def renew(self, tenant: Tenant, permits: list[str]) -> None:
        """These requests go on for at least another lease."""


def period(now: float) -> Period:
    """now: Unix time."""
    moment = datetime.fromtimestamp(now, UTC)
    today = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    next_month = (today.replace(day=1) + timedelta(days=32)).replace(day=1)
    return Period(
        day=f"{today:%Y-%m-%d}",
        month=f"{today:%Y-%m}",
        day_left_s=(today + timedelta(days=1) - moment).total_seconds(),
        month_left_s=(next_month - moment).total_seconds(),
    )


@dataclass(slots=True)
class Bucket:
    """empty_at: microseconds on the clock of whoever asks. Whole ones, rounded down: what adds up
    to the limit fits into it.
    """

    empty_at: int = 0

    def wait(self, cost: int, limit: int, now: int) -> int:
        """Microseconds until `cost`, at most `limit`, has room; 0 or less: now."""
        return max(self.empty_at, now) + _duration(min(cost, limit), limit) - now - MINUTE_US

    def take(self, cost: int, limit: int, now: int) -> None:
        self.empty_at = max(self.empty_at, now) + _duration(min(cost, limit), limit)

    def correct(self, by: int, limit: int, now: int) -> None:
        """by: what was used beyond what was taken; below 0: what was not used of it."""
        begin = max(self.empty_at, now) if by > 0 else self.empty_at
        self.empty_at = begin + _duration(by, limit)

    def used(self, now: int) -> int:
        """Microseconds until it is empty."""
        return max(0, self.empty_at - now)


def num_left(limit: int | None, used_us: int) -> int | None:
    """Of a limit, with a bucket that is empty after `used_us`."""
    return None if limit is None else max(0, int(limit - used_us * limit / MINUTE_US + 1e-6))


def _duration(cost: int, limit: int) -> int:
    return cost * MINUTE_US // limit


@dataclass(slots=True)
class _Spent:
    name: str = ""
    tokens: int = 0

    def in_period(self, name: str) -> int:
        """Clocks differ a little: a period that has begun does not go back."""
        if name > self.name:
            self.name, self.tokens = name, 0
        return self.tokens


@dataclass(slots=True)
class _Account:
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    day: _Spent = field(default_factory=_Spent)
    month: _Spent = field(default_factory=_Spent)
    open: dict[str, tuple[int, int]] = field(default_factory=dict)  # lease's end, reserved

    def lapse(self, now: int) -> None:
        for permit in [each for each, (end, _) in self.open.items() if end <= now]:
            del self.open[permit]

    @property
    def num_reserved(self) -> int:
        return sum(reserved for _, reserved in self.open.values())


class MemoryLimits:
    """A `LimitStore` of this process: where there is no Redis, and while it is away."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    async def admit(
        self, tenant: Tenant, permit: str, num_tokens: int, ended: Collection[str] = ()
    ) -> Verdict:
        account, limits = self._account(tenant), tenant.limits
        now_s = self._clock()
        now = _us(now_s)
        account.lapse(now)
        num_open = len(account.open.keys() - ended)
        reason, wait_s = _refusal(account, limits, num_tokens, num_open, now, period(now_s))
        if reason is None:
            if limits.requests_per_minute is not None:
                account.requests.take(1, limits.requests_per_minute, now)
            if limits.tokens_per_minute is not None:
                account.tokens.take(num_tokens, limits.tokens_per_minute, now)
            account.open[permit] = now + _us(LEASE_S), num_tokens
        return _verdict(account, limits, now, reason, wait_s)

    async def settle(self, tenant: Tenant, permit: str, reserved: int, actual: int) -> None:
        account, limit = self._account(tenant), tenant.limits.tokens_per_minute
        now_s = self._clock()
        account.open.pop(permit, None)
        if limit is not None:
            account.tokens.correct(actual - min(reserved, limit), limit, _us(now_s))
        names = period(now_s)
        for spent, name in ((account.day, names.day), (account.month, names.month)):
            spent.tokens = spent.in_period(name) + actual

    async def renew(self, tenant: Tenant, permits: list[str]) -> None:
        account = self._account(tenant)
        for permit in permits:
            if permit in account.open:
                end = _us(self._clock() + LEASE_S)
                account.open[permit] = end, account.open[permit][1]

    def _account(self, tenant: Tenant) -> _Account:
        return self._accounts.setdefault(tenant.name, _Account())


def _refusal(
    account: _Account,
    limits: Limits,
    num_tokens: int,
    num_open: int,
    now: int,
    names: Period,
) -> tuple[str | None, float]:
    """The first limit that forbids the request, and the seconds until it may not."""
    reserved = account.num_reserved
    budgets = (
        ("tokens_per_day", limits.tokens_per_day, account.day, names.day, names.day_left_s),
        (
            "tokens_per_month",
            limits.tokens_per_month,
            account.month,
            names.month,
            names.month_left_s,
        ),
    )
    for reason, budget, spent, name, left_s in budgets:
        if budget is not None and spent.in_period(name) + reserved + num_tokens > budget:
            return reason, left_s
    if limits.concurrency is not None and num_open >= limits.concurrency:
        return "concurrency", 1.0
    rates = (
        ("requests_per_minute", account.requests, 1, limits.requests_per_minute),
        ("tokens_per_minute", account.tokens, num_tokens, limits.tokens_per_minute),
    )
    for reason, bucket, cost, limit in rates:
        if limit is not None and (wait := bucket.wait(cost, limit, now)) > 0:
            return reason, wait / 1e6
    return None, 0.0


def _verdict(
    account: _Account, limits: Limits, now: int, reason: str | None, wait_s: float
) -> Verdict:
    requests, tokens = account.requests.used(now), account.tokens.used(now)
    return Verdict(
        reason,
        wait_s,
        num_left(limits.requests_per_minute, requests),
        requests / 1e6,
        num_left(limits.tokens_per_minute, tokens),
        tokens / 1e6,
    )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
