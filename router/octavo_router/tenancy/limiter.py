"""Admits requests by their tenant's limits. Redis away means local limits, never a refusal."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import redis.exceptions

from octavo_protocol.errors import RateLimitError, refusal_headers
from octavo_router.tenancy.limits import LEASE_S, LimitStore, Verdict
from octavo_router.tenancy.tenant import Limits, Tenant

logger = logging.getLogger(__name__)

REDIS_FAILURES = (redis.exceptions.RedisError, OSError, TimeoutError)
_AWAY_S = 1.0
_BUDGETS = ("tokens_per_day", "tokens_per_month")


@dataclass(frozen=True, slots=True)
class Permit:
    """An admitted request. num_reserved: tokens. store: who keeps it; None: nothing is counted."""

    id: str
    tenant: Tenant
    num_reserved: int
    store: LimitStore | None
    verdict: Verdict

    @property
    def headers(self) -> dict[str, str]:
        """`x-ratelimit-…`, as OpenAI's API sends them."""
        return rate_limit_headers(self.tenant.limits, self.verdict)


class Limiter:
    """shared: in Redis, where there is one; local: of this router alone, each with whole limits.

    is_degraded: Redis did not answer lately.
    """

    def __init__(
        self,
        shared: LimitStore | None,
        local: LimitStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._local = local
        self._clock = clock
        self._away_until = -math.inf
        self._open: dict[str, Permit] = {}
        self._ended: dict[str, set[str]] = {}  # by tenant; not settled yet

    @property
    def is_degraded(self) -> bool:
        return self._clock() < self._away_until

    async def admit(self, tenant: Tenant, num_tokens: int) -> Permit:
        """num_tokens: estimate of prompt and output. Raises `RateLimitError`."""
        permit_id = secrets.token_hex(8)
        if not tenant.limits.is_counted:
            return Permit(permit_id, tenant, num_tokens, None, Verdict())
        store, verdict = await self._ask(tenant, permit_id, num_tokens)
        if verdict.reason is not None:
            raise _refused(tenant, verdict, num_tokens)
        permit = Permit(permit_id, tenant, num_tokens, store, verdict)
        self._open[permit_id] = permit
        return permit

    def resumed(self, tenant: Tenant) -> Permit:
        """For a request that was admitted by a router that is gone: it is counted, not limited."""
        store = self._shared if tenant.limits.is_counted else None
        return Permit(secrets.token_hex(8), tenant, 0, store, Verdict())

    def ended(self, permit: Permit) -> None:
        """Its lease need not be renewed any more; what it used is still to be settled. From now on
        it does not count as open for this router: the client may send its next request before
        Redis knows.
        """
        if self._open.pop(permit.id, None) is not None:
            self._ended.setdefault(permit.tenant.name, set()).add(permit.id)

    def settled(self, permit: Permit) -> None:
        """The store knows that it has ended."""
        if (ended := self._ended.get(permit.tenant.name)) is not None:
            ended.discard(permit.id)
            if not ended:
                del self._ended[permit.tenant.name]

    async def renew(self) -> None:
        """Keeps the leases of long requests. Runs until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            by_tenant: dict[tuple[int, str], list[Permit]] = {}
            for permit in self._open.values():
                by_tenant.setdefault((id(permit.store), permit.tenant.name), []).append(permit)
            for permits in by_tenant.values():
                await self._renew(permits)

    async def _ask(
        self, tenant: Tenant, permit_id: str, num_tokens: int
    ) -> tuple[LimitStore, Verdict]:
        # Only where it matters: there may be many.
        ended = tuple(self._ended.get(tenant.name, ())) if tenant.limits.concurrency else ()
        if self._shared is not None and not self.is_degraded:
            try:
                verdict = await self._shared.admit(tenant, permit_id, num_tokens, ended)
                return self._shared, verdict
            except REDIS_FAILURES as error:
                self._note(error)
        return self._local, await self._local.admit(tenant, permit_id, num_tokens, ended)

    async def _renew(self, permits: list[Permit]) -> None:
        store = permits[0].store
        assert store is not None
        try:
            await store.renew(permits[0].tenant, [each.id for each in permits])
        except REDIS_FAILURES as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        if self._away_until == -math.inf or self._clock() > self._away_until + _AWAY_S:
            logger.warning("Redis is away, each router counts limits for itself: %s", error)
        self._away_until = self._clock() + _AWAY_S


def rate_limit_headers(limits: Limits, verdict: Verdict) -> dict[str, str]:
    headers: dict[str, str] = {}
    for kind, limit, left, reset_s in (
        (
            "requests",
            limits.requests_per_minute,
            verdict.remaining_requests,
            verdict.reset_requests_s,
        ),
        ("tokens", limits.tokens_per_minute, verdict.remaining_tokens, verdict.reset_tokens_s),
    ):
        if limit is not None:
            headers[f"x-ratelimit-limit-{kind}"] = str(limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(left or 0)
            headers[f"x-ratelimit-reset-{kind}"] = duration(reset_s)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI's headers write it: `1h0m2s`, `1m2s`, `5s`, `120ms`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def _refused(tenant: Tenant, verdict: Verdict, num_tokens: int) -> RateLimitError:
    reason = verdict.reason or ""
    limit = getattr(tenant.limits, reason)
    kind = "budget" if reason in _BUDGETS else "limit"
    size = f"; this one is counted as {num_tokens} tokens" if "tokens" in reason else ""
    extra: Mapping[str, str] = rate_limit_headers(tenant.limits, verdict)
    return RateLimitError(
        f"the {kind} of tenant {tenant.name}, {reason}={limit}, allows no further request now"
        f"{size}; try again in {duration(verdict.retry_after_s)}",
        code="insufficient_quota" if kind == "budget" else "rate_limit_exceeded",
        headers={**extra, **refusal_headers(reason, verdict.retry_after_s)},
    )
