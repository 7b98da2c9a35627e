"""The one router that generates a stream: from a replica into the journal, and to its own clients.

It goes on without a client for as long as one may come back, and stops when another router has
taken the stream over. When the journal fails it goes on for the client that it has.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from octavo_protocol.asgi import Message
from octavo_protocol.errors import GoneError, OctavoError
from octavo_protocol.tasks import stop_tasks
from octavo_router.proxy import Proxy, ProxyRequest
from octavo_router.resumption.answer import Answer
from octavo_router.resumption.events import AnswerHead, Batch, EventBuffer
from octavo_router.resumption.journal import Journal, JournalAwayError, Kept, StreamName
from octavo_router.resumption.tail import Tail
from octavo_router.stream_trace import StreamTrace

logger = logging.getLogger(__name__)

_RENEWALS = 3  # within one lease
_KEEP_ALIVE_S = 15.0
_EVENTS = b"text/event-stream"


class _StoppedError(Exception):
    """There is nothing more to do here: the stream is another router's, or nobody's."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What this router holds: the stream `name` of the request with that fingerprint."""

    name: StreamName
    token: str
    fingerprint: str


class Generation:
    """trace: what another owner has generated. tail: likewise, the events.

    grace_s: how long it goes on without anybody who reads. is_kept: what comes is in the journal;
    else only the clients that it has get it. on_unkept: called when the journal failed.
    """

    def __init__(
        self,
        lease: Lease,
        request: ProxyRequest,
        trace: StreamTrace,
        tail: Tail,
        *,
        proxy: Proxy,
        journal: Journal,
        lease_s: float,
        grace_s: float,
        on_unkept: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lease = lease
        self._request = request
        self._trace = trace
        self._tail = tail
        self._proxy = proxy
        self._journal = journal
        self._period_s = lease_s / _RENEWALS
        self._grace_s = grace_s
        self._on_unkept = on_unkept
        self._clock = clock
        self._buffer = EventBuffer()
        self.is_kept = True
        self._parted_at = clock()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns when the answer is whole, or when this router has nothing more to do with it."""
        relaying = asyncio.ensure_future(self._relay())
        holding = asyncio.ensure_future(self._hold())
        try:
            await asyncio.wait((relaying, holding), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop_tasks((relaying, holding))
            await self._let_go()
            self._tail.leave()

    def can_serve(self, after: int) -> bool:
        """Whether a client that has the events up to `after` may join: what it gets is kept, and
        this router, as far as it knows, is the one that generates it.

        One that is behind the client may have lost the stream to another router and not know it.
        """
        return self.is_kept and not self._tail.is_left and after <= self._tail.last

    def stop(self) -> None:
        """Another router may go on."""
        self._stopping.set()

    async def copy(self, answer: Answer) -> bool:
        """Gives a client what there is and what comes. True: the answer is whole; False: somebody
        else must be asked for the rest. Raises why there is no rest.
        """
        tail, spoken_at = self._tail, self._clock()
        tail.joined()
        try:
            while True:
                if tail.head is not None:
                    await answer.begin(tail.head)
                batches = tail.after(answer.last)
                if batches is None:
                    reading = await self._journal.read(self.lease.name, answer.last)
                    batches = list(reading.batches)
                    if not batches and not self.is_kept:
                        raise GoneError("the client fell behind a stream that is not kept")
                    if not batches:
                        return False
                if batches:
                    await answer.write(batches)
                    spoken_at = self._clock()
                elif tail.is_ended:
                    await answer.finish()
                    return True
                elif tail.error is not None:
                    raise tail.error
                elif tail.is_left:
                    return False
                elif self._clock() - spoken_at > _KEEP_ALIVE_S:
                    await answer.keep_alive()
                    spoken_at = self._clock()
                else:
                    await tail.changed()
        finally:
            self._parted_at = self._clock()
            tail.parted()

    async def _relay(self) -> None:
        try:
            await self._proxy.generate(self._request, self._trace, self._send)
            self._tail.end()
        except _StoppedError:
            pass
        except Exception as error:
            if not isinstance(error, OctavoError):
                logger.exception("a stream failed", extra={"request_id": self._request.request_id})
            self._tail.fail(error)

    async def _hold(self) -> None:
        """Renews the lease; returns when nobody has read for too long, or it is another's."""
        while not await self._is_stopped(self._period_s):
            self._tail.tick()
            unread_s = await self._renew()
            if self._tail.num_followers:
                continue
            if min(unread_s, self._clock() - self._parted_at) > self._grace_s:
                return

    async def _is_stopped(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _renew(self) -> float:
        """Seconds for which nobody has read in the journal.

        Raises `_StoppedError` where the stream is another router's.
        """
        if not self.is_kept:
            return float("inf")
        try:
            appended = await self._journal.append(
                self.lease.name, self.lease.token, Batch(self._tail.last)
            )
        except JournalAwayError:
            return 0.0  # the next batch decides
        if appended.kept is Kept.FENCED:
            raise _StoppedError
        if appended.kept is not Kept.YES:
            self._lose(appended.kept)
        return appended.unread_s

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begin(message)
            return
        head, is_last = self._tail.head, not message["more_body"]
        assert head is not None
        events = self._events(head, message["body"], is_last=is_last)
        if not events and not is_last:
            return
        batch = Batch(self._tail.last + len(events), events, self._trace.take())
        if not head.is_repeatable:
            await self._forget()
        elif self.is_kept:
            await self._keep(batch, head, is_end=is_last)
        self._tail.add(batch)
        if not self.is_kept:
            await self._tail.all_read()
            if not self._tail.num_followers:
                raise _StoppedError

    def _begin(self, message: Message) -> None:
        headers = tuple(message["headers"])
        kind = dict(headers).get(b"content-type", b"")
        is_stream = kind.startswith(_EVENTS)
        self._tail.begin(AnswerHead(message["status"], headers, is_stream, self._trace.head))

    def _events(self, head: AnswerHead, data: bytes, *, is_last: bool) -> tuple[bytes, ...]:
        if not head.is_stream:
            return (data,)
        events = self._buffer.feed(data)
        return events + self._buffer.finish() if is_last else events

    async def _keep(self, batch: Batch, head: AnswerHead, *, is_end: bool) -> None:
        """Puts `batch` into the journal, before anybody sees it."""
        is_first = batch.first == 1
        try:
            appended = await self._journal.append(
                self.lease.name,
                self.lease.token,
                batch,
                head if is_first else None,
                is_end=is_end,
            )
        except JournalAwayError as error:
            self._lose(str(error))
            return
        if appended.kept is Kept.FENCED:
            raise _StoppedError
        if appended.kept is not Kept.YES:
            self._lose(appended.kept)

    def _lose(self, why: str) -> None:
        logger.warning(
            "a stream can be resumed no longer: %s",
            why,
            extra={"request_id": self._request.request_id},
        )
        self.is_kept = False
        self._on_unkept()

    async def _forget(self) -> None:
        """The answer is not one that can be repeated: the next to ask tries again."""
        self.is_kept = False
        with suppress(JournalAwayError):
            await self._journal.drop(self.lease.name, self.lease.token)

    async def _let_go(self) -> None:
        """Leaves what is not ended to whoever comes next."""
        if self._tail.is_ended or not self.is_kept:
            return
        with suppress(JournalAwayError):  # then the lease runs out by itself
            await self._journal.release(self.lease.name, self.lease.token)
