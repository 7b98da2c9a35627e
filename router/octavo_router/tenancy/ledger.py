"""Writes what finished requests used into Redis: settled limits, records, sums by day.

Requests hand over what they used and do not wait. One task writes all that has come since its last
write in one round trip. While Redis is away what comes is kept, up to a bound, and written later;
a write whose answer is lost is made again, and then counts twice.
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from octavo_protocol.keys import USAGE, USAGE_DAYS, usage_day
from octavo_router.tenancy.limiter import REDIS_FAILURES, Permit
from octavo_router.tenancy.redis_limits import RedisLimits
from octavo_router.tenancy.usage import UsageRecord

if TYPE_CHECKING:
    import redis.asyncio
    from redis.asyncio.client import Pipeline

logger = logging.getLogger(__name__)

MAX_KEPT = 10_000
_BATCH = 200
_GATHER_S = 0.02  # for which entries gather: one write of many costs little more than one of one
_RETRY_S = 1.0
# Days past their end that are looked for: routers may have been down for so long.
_SWEPT_DAYS = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """record: None for requests that generate nothing."""

    permit: Permit
    num_tokens: int
    record: UsageRecord | None


class Ledger:
    """client: None: there is no Redis, and only local limits are settled.

    max_records: length of the stream of records. on_settled: called with each permit that need not
    be remembered any more. num_lost: entries that were not written.
    """

    def __init__(
        self,
        client: "redis.asyncio.Redis | None",
        *,
        max_records: int,
        on_settled: Callable[[Permit], None] = lambda permit: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._max_records = max_records
        self._on_settled = on_settled
        self._clock = clock
        self._entries: deque[Entry] = deque()
        self._has_entries = asyncio.Event()
        self._swept = ""
        self._is_waiting = False
        self.num_lost = 0

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)
        if len(self._entries) > MAX_KEPT:
            self._on_settled(self._entries.popleft().permit)
            self.num_lost += 1
        self._has_entries.set()

    async def follow(self) -> None:
        """Writes until cancelled."""
        while True:
            await self._has_entries.wait()
            await asyncio.sleep(_GATHER_S)
            if not await self.flush():
                await asyncio.sleep(_RETRY_S)

    async def flush(self) -> bool:
        """Whether all was written that had come."""
        while self._entries:
            batch = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
            try:
                await self._write(batch)
            except BaseException as error:
                self._entries.extendleft(reversed(batch))
                if not isinstance(error, REDIS_FAILURES):
                    raise
                if not self._is_waiting:
                    logger.warning("usage is kept until Redis is back: %s", error)
                self._is_waiting = True
                return False
            for entry in batch:
                self._on_settled(entry.permit)
        self._is_waiting = False
        self._has_entries.clear()
        return True

    async def _write(self, batch: list[Entry]) -> None:
        if self._client is None:
            for entry in batch:
                await _settle_locally(entry)
            return
        day = datetime.fromtimestamp(self._clock(), UTC)
        records = [entry.record for entry in batch if entry.record is not None]
        async with self._client.pipeline(transaction=False) as pipe:
            for entry in batch:
                if isinstance(entry.permit.store, RedisLimits):
                    await _settle(entry, entry.permit.store, pipe)
            for record in records:
                fields = msgspec.to_builtins(record)
                pipe.xadd(USAGE, fields, maxlen=self._max_records, approximate=True)
            for field, number in _sums(records).items():
                pipe.hincrby(usage_day(f"{day:%Y-%m-%d}"), field, number)
            self._sweep(day, pipe)
            await pipe.execute()
        for entry in batch:  # after what may fail: a batch may be written again
            if not isinstance(entry.permit.store, RedisLimits):
                await _settle_locally(entry)

    def _sweep(self, day: datetime, pipe: "Pipeline") -> None:
        """Once a day: forgets the sums of days long past."""
        if self._swept != (today := f"{day:%Y-%m-%d}"):
            self._swept = today
            ages = range(USAGE_DAYS, USAGE_DAYS + _SWEPT_DAYS)
            pipe.unlink(*(usage_day(f"{day - timedelta(days=age):%Y-%m-%d}") for age in ages))


async def _settle(entry: Entry, store: RedisLimits, pipe: "Pipeline") -> None:
    permit = entry.permit
    await store.settle(permit.tenant, permit.id, permit.num_reserved, entry.num_tokens, pipe)


async def _settle_locally(entry: Entry) -> None:
    permit = entry.permit
    if permit.store is not None:
        await permit.store.settle(permit.tenant, permit.id, permit.num_reserved, entry.num_tokens)


def _sums(records: Iterable[UsageRecord]) -> Counter[str]:
    """By the fields of a day's hash."""
    sums: Counter[str] = Counter()
    for record in records:
        for what, number in (
            ("requests", 1),
            ("prompt_tokens", record.prompt_tokens),
            ("cached_tokens", record.cached_tokens),
            ("output_tokens", record.output_tokens),
        ):
            if number:
                field = msgspec.json.encode([record.tenant, record.model, what]).decode()
                sums[field] += number
    return sums
