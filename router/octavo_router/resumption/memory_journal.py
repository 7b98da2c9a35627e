"""The journal of a router without Redis, and the rules of the other one in plain words."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from octavo_protocol.keys import Keys
from octavo_router.resumption.events import AnswerHead, Batch
from octavo_router.resumption.journal import (
    Appended,
    Claim,
    JournalLimits,
    Kept,
    Reading,
    Standing,
    StreamName,
)


@dataclass(slots=True)
class _Stream:
    """until: end of the lease. wanted_at: last claim or reading. Times of the clock."""

    fingerprint: str
    wanted_at: float
    expires_at: float
    owner: str | None = None
    until: float = float("-inf")
    head: AnswerHead | None = None
    batches: list[Batch] = field(default_factory=list)
    num_bytes: int = 0
    is_ended: bool = False
    is_lost: bool = False

    @property
    def last(self) -> int:
        return self.batches[-1].last if self.batches else 0


class MemoryJournal:
    """Implements `Journal` for the routers of one event loop."""

    def __init__(self, limits: JournalLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._streams: dict[StreamName, _Stream] = {}
        self._num_bytes: Counter[Keys] = Counter()
        self._watchers: defaultdict[StreamName, set[asyncio.Event]] = defaultdict(set)

    async def claim(
        self, name: StreamName, token: str, fingerprint: str, *, must_exist: bool
    ) -> Claim:
        now = self._clock()
        self._sweep(now)
        stream = self._streams.get(name)
        if stream is None:
            if must_exist:
                return Claim(Standing.MISSING)
            if self._num_bytes[name.keys] >= self._limits.max_total_bytes:
                return Claim(Standing.FULL)
            stream = self._streams[name] = _Stream(fingerprint, now, now + self._limits.ttl_s)
        if stream.fingerprint != fingerprint:
            return Claim(Standing.OTHER_REQUEST)
        stream.wanted_at = now
        standing = _standing(stream, now)
        if standing in (Standing.NEW, Standing.TAKEN_OVER):
            stream.owner, stream.until = token, now + self._limits.lease_s
        return Claim(standing, stream.last)

    async def append(
        self,
        name: StreamName,
        token: str,
        batch: Batch,
        head: AnswerHead | None = None,
        *,
        is_end: bool = False,
    ) -> Appended:
        now = self._clock()
        stream = self._streams.get(name)
        if stream is None:
            return Appended(Kept.MISSING)
        if stream.owner != token:
            return Appended(Kept.FENCED)
        if batch.events and batch.last > stream.last:
            if batch.num_bytes > self._room(name, stream):
                self._lose(name, stream)
                return Appended(Kept.FULL)
            stream.batches.append(batch)
            self._grow(name, stream, batch.num_bytes)
        stream.head = head or stream.head
        stream.is_ended = stream.is_ended or is_end
        stream.until, stream.expires_at = now + self._limits.lease_s, now + self._limits.ttl_s
        self._tell(name)
        return Appended(Kept.YES, now - stream.wanted_at)

    async def read(self, name: StreamName, after: int) -> Reading:
        now = self._clock()
        stream = self._streams.get(name)
        if stream is None:
            return Reading(False, False, None, ())
        stream.wanted_at = now
        batches = tuple(batch for batch in stream.batches if batch.last > after)
        return Reading(stream.is_ended, _is_running(stream, now), stream.head, batches)

    async def release(self, name: StreamName, token: str) -> None:
        stream = self._streams.get(name)
        if stream is not None and stream.owner == token:
            stream.owner, stream.until = None, float("-inf")
            self._tell(name)

    async def drop(self, name: StreamName, token: str) -> None:
        stream = self._streams.get(name)
        if stream is not None and stream.owner == token:
            self._forget(name)
            self._tell(name)

    @asynccontextmanager
    async def watch(self, name: StreamName) -> AsyncIterator[asyncio.Event]:
        event = asyncio.Event()
        self._watchers[name].add(event)
        try:
            yield event
        finally:
            self._watchers[name].discard(event)
            if not self._watchers[name]:
                del self._watchers[name]

    def _tell(self, name: StreamName) -> None:
        for event in self._watchers.get(name, ()):
            event.set()

    def _room(self, name: StreamName, stream: _Stream) -> int:
        limits = self._limits
        return min(
            limits.max_stream_bytes - stream.num_bytes,
            limits.max_total_bytes - self._num_bytes[name.keys],
        )

    def _grow(self, name: StreamName, stream: _Stream, num_bytes: int) -> None:
        stream.num_bytes += num_bytes
        self._num_bytes[name.keys] += num_bytes

    def _lose(self, name: StreamName, stream: _Stream) -> None:
        """Keeps no more of `stream` than that there was one."""
        self._grow(name, stream, -stream.num_bytes)
        stream.is_lost, stream.batches, stream.owner = True, [], None
        self._tell(name)

    def _forget(self, name: StreamName) -> None:
        self._num_bytes[name.keys] -= self._streams.pop(name).num_bytes

    def _sweep(self, now: float) -> None:
        for name in [name for name, each in self._streams.items() if each.expires_at <= now]:
            self._forget(name)


def _is_running(stream: _Stream, now: float) -> bool:
    return stream.owner is not None and stream.until > now and not stream.is_ended


def _standing(stream: _Stream, now: float) -> Standing:
    """What a claimer of the same request finds."""
    if stream.is_ended:
        return Standing.ENDED
    if stream.is_lost:
        return Standing.LOST
    if _is_running(stream, now):
        return Standing.RUNNING
    if not stream.last:
        return Standing.NEW
    is_continuable = stream.head is not None and stream.head.trace is not None
    return Standing.TAKEN_OVER if is_continuable else Standing.LOST
