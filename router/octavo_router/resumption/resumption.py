"""Answers requests that can be resumed: finds out who generates the answer, and copies from there.

no owner                     this router generates it (`Generation`), and goes on from the
                             journal where somebody had begun
this router is the owner     the client joins
another router is the owner  the client is served from the journal as it grows
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from octavo_protocol.asgi import Message, Send
from octavo_protocol.errors import (
    DeadlineError,
    GoneError,
    OtherRequestError,
    UnavailableError,
)
from octavo_protocol.tasks import stop_tasks
from octavo_protocol.wire_formats import wire_format
from octavo_router.metrics import RouterMetrics
from octavo_router.proxy import Proxy, ProxyRequest, broken_event
from octavo_router.resumption.answer import RESUMABLE_HEADER, Answer
from octavo_router.resumption.asked import Asked
from octavo_router.resumption.events import AnswerHead
from octavo_router.resumption.generation import Generation, Lease
from octavo_router.resumption.journal import (
    Claim,
    Journal,
    JournalAwayError,
    JournalLimits,
    Standing,
    StreamName,
)
from octavo_router.resumption.journal_reader import JournalReader
from octavo_router.resumption.tail import Tail
from octavo_router.stream_trace import StreamTrace

logger = logging.getLogger(__name__)

_CLOSE_S = 2.0
_AWAY_S = 1.0  # for which a journal that did not answer is not asked again


class _NotKeptError(Exception):
    """The answer can be given, but not kept."""


class Resumption:
    """Belongs to one event loop. limits: those of `journal`. grace_s: how long a stream is
    generated for a client that has left.
    """

    def __init__(
        self,
        *,
        proxy: Proxy,
        journal: Journal,
        limits: JournalLimits,
        grace_s: float,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxy = proxy
        self._journal = journal
        self._limits = limits
        self._grace_s = grace_s
        self._metrics = metrics
        self._clock = clock
        self._generations: dict[StreamName, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._away_until = float("-inf")

    async def close(self) -> None:
        """Stops generating; other routers may go on at once."""
        self._is_closing = True
        for generation in self._generations.values():
            generation.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_S)
        await stop_tasks(self._tasks)

    async def answer(self, request: ProxyRequest, asked: Asked, send: Send) -> None:
        """Answers the client. Raises `OctavoError` before any byte; later it is an event."""
        name = StreamName(request.deployment.keys, asked.id)
        answer = Answer(send, asked.after)
        try:
            while not await (await self._source(name, request, asked, answer)).copy(answer):
                pass
        except _NotKeptError:
            self._metrics.resumable_answers.labels("not_kept").inc()
            await self._proxy.relay(request, _told(send))
        except (DeadlineError, GoneError, UnavailableError) as error:
            if not answer.has_begun:
                raise
            logger.warning("a stream ends: %s", error, extra={"request_id": request.request_id})
            await answer.finish(broken_event(request.path, error))

    async def _source(
        self, name: StreamName, request: ProxyRequest, asked: Asked, answer: Answer
    ) -> "Generation | JournalReader":
        """From where the answer can be copied now."""
        if self._is_closing:
            raise UnavailableError("the router is stopping; ask another one for the rest")
        generation = self._generations.get(name)
        if generation is not None and generation.can_serve(answer.last):
            if generation.lease.fingerprint != asked.fingerprint:
                raise _other_request()
            self._metrics.resumable_answers.labels("followed").inc()
            return generation
        lease = Lease(name, secrets.token_hex(8), asked.fingerprint)
        claim = await self._claim(lease, answer)
        self._check(claim, answer)
        if claim.standing in (Standing.NEW, Standing.TAKEN_OVER):
            how = "begun" if claim.standing is Standing.NEW else "taken_over"
            self._metrics.resumable_answers.labels(how).inc()
            return await self._generate(lease, request, claim)
        self._metrics.resumable_answers.labels("followed").inc()
        return JournalReader(self._journal, name)

    async def _claim(self, lease: Lease, answer: Answer) -> Claim:
        must_exist = answer.has_begun or answer.last > 0
        try:
            return await self._asked_journal(lease, must_exist)
        except JournalAwayError as error:
            if must_exist:
                raise UnavailableError(f"the stream cannot be resumed now: {error}") from error
            raise _NotKeptError from error

    async def _asked_journal(self, lease: Lease, must_exist: bool) -> Claim:
        if self._clock() < self._away_until:
            raise JournalAwayError("Redis is away")
        try:
            return await self._journal.claim(
                lease.name, lease.token, lease.fingerprint, must_exist=must_exist
            )
        except JournalAwayError:
            self._away_until = self._clock() + _AWAY_S
            raise

    def _check(self, claim: Claim, answer: Answer) -> None:
        """Raises what says why a claim leads to no answer."""
        if claim.standing is Standing.OTHER_REQUEST:
            raise _other_request()
        if claim.standing is Standing.FULL:
            raise _NotKeptError
        if claim.standing is Standing.MISSING:
            raise GoneError(
                "the stream is no longer kept; ask again without Last-Event-ID for a new one"
            )
        if claim.standing is Standing.LOST or answer.last > claim.last:
            raise GoneError(
                "the stream was not kept whole and cannot be resumed; ask again with another "
                "Idempotency-Key"
            )

    async def _generate(self, lease: Lease, request: ProxyRequest, claim: Claim) -> Generation:
        """This router is the owner now: it begins, or goes on."""
        trace, tail = StreamTrace(wire_format(request.path)), Tail(claim.last)
        if claim.last:
            tail.head = await self._restore(lease.name, trace)
        generation = Generation(
            lease,
            request,
            trace,
            tail,
            proxy=self._proxy,
            journal=self._journal,
            lease_s=self._limits.lease_s,
            grace_s=self._grace_s,
            on_unkept=self._metrics.resumable_answers.labels("not_kept").inc,
            clock=self._clock,
        )
        self._generations[lease.name] = generation
        task = asyncio.create_task(generation.run())
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, generation))
        return generation

    async def _restore(self, name: StreamName, trace: StreamTrace) -> AnswerHead | None:
        """Brings `trace` to where the journal is."""
        entries, last = bytearray(), 0
        while (reading := await self._journal.read(name, last)).batches:
            entries += b"".join(batch.entries for batch in reading.batches)
            last = reading.batches[-1].last
        if reading.head is None or reading.head.trace is None:
            raise GoneError("the stream is no longer kept; ask again for a new one")
        trace.restore(reading.head.trace, bytes(entries))
        return reading.head

    def _ended(self, task: asyncio.Task[None], generation: Generation) -> None:
        self._tasks.discard(task)
        if self._generations.get(generation.lease.name) is generation:
            del self._generations[generation.lease.name]


def _told(send: Send) -> Send:
    """Tells the client in a header that it cannot come back to the answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (RESUMABLE_HEADER, b"0")]
        await send(message)

    return sent


def _other_request() -> OtherRequestError:
    return OtherRequestError(
        "this Idempotency-Key was used with another request; use a new key for a new request"
    )
