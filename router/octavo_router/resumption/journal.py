"""What routers share about streams that can be resumed. One interface with two forms.

A stream has one owner at a time, the router that generates it: it holds a lease, which every append
renews. When the lease has run out, the next router that is asked for the stream takes it over; from
then on the appends of the old owner are refused. A client sees an event only when it is in the
journal, so that nobody who goes on from the journal repeats or skips what a client has.

    claim ──► NEW ─────────────► append … append(is_end) ──► ENDED ──► forgotten after the TTL
       │       ▲ no event yet       │ release, or the lease runs out
       │       └──────────────────  ▼
       └────► TAKEN_OVER ◄───── nobody's         FULL: forgotten but for the fact (LOST)
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from octavo_protocol.errors import UnavailableError
from octavo_protocol.keys import Keys
from octavo_router.resumption.events import AnswerHead, Batch


class JournalAwayError(UnavailableError):
    """The journal cannot be reached."""


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """lease_s: an owner that is silent for so long has lost the stream. ttl_s: for how long a
    stream is kept after its last sign of life. Bytes: of one stream, and of all of a deployment.
    """

    lease_s: float = 3.0
    ttl_s: float = 300.0
    max_stream_bytes: int = 4 * 2**20
    max_total_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StreamName:
    """keys: of the deployment. id: made of the client's key and of who the client is."""

    keys: Keys
    id: str


class Standing(StrEnum):
    """What a claim finds. NEW, TAKEN_OVER: the claimer is the owner now, of a stream without or
    with events. RUNNING, ENDED: it can be read. LOST: it was not kept whole. OTHER_REQUEST: the
    name is another request's. MISSING: there is none, and none was to be begun. FULL: there is no
    room for one.
    """

    NEW = "new"
    TAKEN_OVER = "taken over"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"
    OTHER_REQUEST = "other request"
    MISSING = "missing"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Claim:
    """last: the number of the last event in the journal."""

    standing: Standing
    last: int = 0


class Kept(StrEnum):
    """What became of an append. FENCED: another router has the stream. MISSING: the journal has
    forgotten it. FULL: it outgrew the bounds and is LOST.
    """

    YES = "yes"
    FENCED = "fenced"
    MISSING = "missing"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Appended:
    """unread_s: seconds since the stream was last claimed or read by anybody."""

    kept: Kept
    unread_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """is_running: it has an owner. head: None before the first event."""

    is_ended: bool
    is_running: bool
    head: AnswerHead | None
    batches: tuple[Batch, ...]


class Journal(Protocol):
    """Every method may raise `JournalAwayError`. token: names one owner."""

    async def claim(
        self, name: StreamName, token: str, fingerprint: str, *, must_exist: bool
    ) -> Claim:
        """Makes `token` the owner where there is none; of a new stream unless `must_exist`.

        fingerprint: of the request; one name goes with one request.
        """

    async def append(
        self,
        name: StreamName,
        token: str,
        batch: Batch,
        head: AnswerHead | None = None,
        *,
        is_end: bool = False,
    ) -> Appended:
        """Keeps `batch` and renews the lease; an empty batch only renews it.

        head: with the first batch. Appending the same batch again changes nothing.
        """

    async def read(self, name: StreamName, after: int) -> Reading:
        """Some batches that have events above `after`, the next ones first; none: not yet, or
        there is no such stream (then it has neither owner nor end).
        """

    async def release(self, name: StreamName, token: str) -> None:
        """`token` is no longer the owner; who comes next goes on."""

    async def drop(self, name: StreamName, token: str) -> None:
        """The owner `token` forgets the stream."""

    def watch(self, name: StreamName) -> AbstractAsyncContextManager[asyncio.Event]:
        """Inside it the event is set soon after anything that `read` tells has changed. A change
        may be missed: readers look by themselves from time to time.
        """
