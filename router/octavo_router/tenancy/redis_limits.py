"""The limits of `limits.py` in Redis: shared by all routers, one round trip for each request.

A tenant has one hash (when its buckets will be empty, what it has spent, what is reserved), a
sorted set of open requests by the end of their leases, and a hash of what each of those reserved.
Time is the server's, so that routers' clocks need not agree.
"""

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from octavo_protocol.keys import tenant_keys
from octavo_router.tenancy.limits import LEASE_S, MINUTE_US, Verdict, num_left, period
from octavo_router.tenancy.tenant import Tenant

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

_TIMEOUT_S = 1.0
_MAX_CONNECTIONS = 32

_NOW = """
local function now_us(given)
  if given ~= '' then return tonumber(given) end
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end
local function duration(cost, limit, minute) return math.floor(cost * minute / limit) end
local function text(number) return string.format('%.0f', number) end
"""

# Periods begin and never go back; leases that ran out give back what they reserved.
_BEGIN = (
    _NOW
    + """
local state, open, reserved = KEYS[1], KEYS[2], KEYS[3]
local function field(name) return tonumber(redis.call('HGET', state, name) or 0) end
local function begin_period(kind, name)
  local known = redis.call('HGET', state, kind) or ''
  if name > known then redis.call('HSET', state, kind, name, kind .. '_tokens', 0) end
end
local function lapse(now)
  for _, permit in ipairs(redis.call('ZRANGEBYSCORE', open, '-inf', now)) do
    local tokens = redis.call('HGET', reserved, permit) or 0
    redis.call('HINCRBY', state, 'reserved', -tokens)
    redis.call('HDEL', reserved, permit)
    redis.call('ZREM', open, permit)
  end
end
"""
)

_ADMIT = (
    _BEGIN
    + """
local permit, tokens, lease = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local per_minute = {requests = tonumber(ARGV[4]), tokens = tonumber(ARGV[5])}
local concurrency = tonumber(ARGV[6])
local minute = tonumber(ARGV[12])
local function num_open()
  local number = redis.call('ZCARD', open)
  for i = 13, #ARGV do
    if redis.call('ZSCORE', open, ARGV[i]) then number = number - 1 end
  end
  return number
end
local now = now_us(ARGV[11])
begin_period('day', ARGV[7])
begin_period('month', ARGV[9])
lapse(now)
local reason, wait = '', 0
local taken = field('reserved') + tokens
local function busy_until(kind) return math.max(field(kind .. '_empty_at'), now) end
local function cost_us(kind, cost)
  return duration(math.min(cost, per_minute[kind]), per_minute[kind], minute)
end
local function check_rate(kind, cost)
  if reason ~= '' or per_minute[kind] == 0 then return end
  local late = busy_until(kind) + cost_us(kind, cost) - now - minute
  if late > 0 then reason, wait = kind .. '_per_minute', late end
end
if ARGV[8] ~= '0' and field('day_tokens') + taken > tonumber(ARGV[8]) then
  reason = 'tokens_per_day'
elseif ARGV[10] ~= '0' and field('month_tokens') + taken > tonumber(ARGV[10]) then
  reason = 'tokens_per_month'
elseif concurrency > 0 and num_open() >= concurrency then
  reason, wait = 'concurrency', 1000000
end
check_rate('requests', 1)
check_rate('tokens', tokens)
if reason == '' then
  for kind, cost in pairs({requests = 1, tokens = tokens}) do
    if per_minute[kind] > 0 then
      redis.call('HSET', state, kind .. '_empty_at', text(busy_until(kind) + cost_us(kind, cost)))
    end
  end
  redis.call('ZADD', open, text(now + lease), permit)
  redis.call('HSET', reserved, permit, tokens)
  redis.call('HINCRBY', state, 'reserved', tokens)
end
local function used(kind) return text(math.max(0, field(kind .. '_empty_at') - now)) end
return {reason, text(wait), used('requests'), used('tokens')}
"""
)

_SETTLE = (
    _BEGIN
    + """
local permit, tokens, actual = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local limit, minute = tonumber(ARGV[4]), tonumber(ARGV[8])
begin_period('day', ARGV[5])
begin_period('month', ARGV[6])
if redis.call('ZREM', open, permit) == 1 then
  redis.call('HINCRBY', state, 'reserved', -(redis.call('HGET', reserved, permit) or 0))
  redis.call('HDEL', reserved, permit)
end
if limit > 0 then
  local by, from = actual - math.min(tokens, limit), field('tokens_empty_at')
  if by > 0 then from = math.max(from, now_us(ARGV[7])) end
  redis.call('HSET', state, 'tokens_empty_at', text(from + duration(by, limit, minute)))
end
redis.call('HINCRBY', state, 'day_tokens', actual)
redis.call('HINCRBY', state, 'month_tokens', actual)
"""
)

_RENEW = (
    _NOW
    + """
local till = text(now_us(ARGV[1]) + tonumber(ARGV[2]))
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], 'XX', till, ARGV[i]) end
"""
)


def limits_client(url: str) -> redis.asyncio.Redis:
    """For calls that requests wait for: few connections, and little patience."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=_MAX_CONNECTIONS,
        timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),  # a connection that the server closed meanwhile
    )
    return redis.asyncio.Redis.from_pool(pool)


class RedisLimits:
    """A `LimitStore`. clock: Unix time in seconds in place of the server's, for tests."""

    def __init__(
        self, client: redis.asyncio.Redis, clock: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self._admit = client.register_script(_ADMIT)
        self._settle = client.register_script(_SETTLE)
        self._renew = client.register_script(_RENEW)

    async def admit(
        self, tenant: Tenant, permit: str, num_tokens: int, ended: Collection[str] = ()
    ) -> Verdict:
        limits, names = tenant.limits, period(self._time())
        reason, wait_us, used_requests_us, used_tokens_us = await self._admit(
            keys=tenant_keys(tenant.name),
            args=[
                permit,
                num_tokens,
                round(LEASE_S * 1e6),
                limits.requests_per_minute or 0,
                limits.tokens_per_minute or 0,
                limits.concurrency or 0,
                names.day,
                limits.tokens_per_day or 0,
                names.month,
                limits.tokens_per_month or 0,
                self._now_us(),
                MINUTE_US,
                *ended,
            ],
        )
        waits = {b"tokens_per_day": names.day_left_s, b"tokens_per_month": names.month_left_s}
        return Verdict(
            reason.decode() or None,
            waits.get(reason, int(wait_us) / 1e6),
            num_left(limits.requests_per_minute, int(used_requests_us)),
            int(used_requests_us) / 1e6,
            num_left(limits.tokens_per_minute, int(used_tokens_us)),
            int(used_tokens_us) / 1e6,
        )

    async def settle(
        self,
        tenant: Tenant,
        permit: str,
        reserved: int,
        actual: int,
        client: "Pipeline | None" = None,
    ) -> None:
        """client: a pipeline in which to do it."""
        names = period(self._time())
        limit = tenant.limits.tokens_per_minute or 0
        args: list[Any] = [permit, reserved, actual, limit, names.day, names.month]
        args += [self._now_us(), MINUTE_US]
        await self._settle(keys=tenant_keys(tenant.name), args=args, client=client)

    async def renew(self, tenant: Tenant, permits: list[str]) -> None:
        open_key = tenant_keys(tenant.name)[1]
        await self._renew(keys=[open_key], args=[self._now_us(), round(LEASE_S * 1e6), *permits])

    def _time(self) -> float:
        return time.time() if self._clock is None else self._clock()

    def _now_us(self) -> str:
        return "" if self._clock is None else f"{self._clock() * 1e6:.0f}"
