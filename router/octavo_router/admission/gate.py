"""Holds requests of one deployment back while its replicas have no room, in fair order."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from octavo_protocol.errors import UnavailableError, refusal_headers
from octavo_protocol.priorities import is_background
from octavo_router.admission.expected import DrainRate
from octavo_router.admission.fair_queue import FairQueue, QueueFullError, Waiter
from octavo_router.admission.metrics import AdmissionMetrics
from octavo_router.admission.room import has_room
from octavo_router.load_tracker import LoadTracker
from octavo_router.replicas import ReplicaSet

_POLL_S = 0.02  # replicas' records and first tokens make room without telling the gate
_RETRY_AFTER_S = 1.0  # while it is not known how fast the queue moves
_MAX_RETRY_AFTER_S = 60.0


class Gate:
    """A request that waits is granted its turn by `_pump`, once, in the order of the queue.

    background_loads: of background work, for which only its like waits.

    Between its grant and its sending a request is in no count but `_granted`.
    """

    def __init__(
        self,
        name: str,
        replicas: ReplicaSet,
        loads: LoadTracker,
        background_loads: LoadTracker,
        queue: FairQueue,
        metrics: AdmissionMetrics,
        *,
        backlog_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._replicas = replicas
        self._loads = loads
        self._background_loads = background_loads
        self._backlog_s = backlog_s
        self._metrics = metrics
        self._clock = clock
        self._turns: dict[Waiter, asyncio.Future[None]] = {}
        self._granted: dict[Waiter, None] = {}
        self._drain = DrainRate()
        self._pumping: asyncio.Task[None] | None = None
        self.queue = queue

    @property
    def num_pending(self) -> int:
        """Requests that wait, or may go on and have not been sent yet."""
        return len(self._turns) + len(self._granted)

    @asynccontextmanager
    async def turn(self, waiter: Waiter, *, give_up_s: float | None) -> AsyncIterator[None]:
        """Inside it the request may be sent. give_up_s: how long it may wait for that.

        Raises `UnavailableError`: the queue is full, or the time is over.
        """
        first = self.queue.first_priority
        is_behind = first is not None and first <= waiter.priority
        if is_behind or not self._has_room(waiter.priority):
            await self._wait(waiter, give_up_s)
        try:
            yield
        finally:
            self._pump()

    def expected_wait_s(self, waiter: Waiter) -> float:
        """How long it would wait; 0 while nobody does, or nothing is known."""
        if not self.queue.num_requests:
            return 0.0
        ahead = self.queue.tokens_ahead(waiter)
        return self._drain.seconds(ahead, self._clock()) or 0.0

    def close(self) -> None:
        if self._pumping is not None:
            self._pumping.cancel()

    async def _wait(self, waiter: Waiter, give_up_s: float | None) -> None:
        began = self._clock()
        self._enter(waiter, began)
        turn = self._turns[waiter] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(give_up_s):
                await turn
        except TimeoutError:
            raise UnavailableError(
                f"the request waited {give_up_s:.3f} s and its first token is due; give it more"
                " time, or send it again later",
                headers=refusal_headers("deadline", self._retry_after_s()),
            ) from None
        finally:
            del self._turns[waiter]
            self.queue.remove(waiter)
            self._granted.pop(waiter, None)
            self._metrics.wait.observe(self._clock() - began)

    def _enter(self, waiter: Waiter, now: float) -> None:
        if not self.queue.num_requests:
            self._drain.begin(now)
        try:
            displaced = self.queue.push(waiter)
        except QueueFullError:
            raise self._full() from None
        for each in displaced:
            if not self._turns[each].done():
                self._turns[each].set_exception(self._full())
        if self._pumping is None or self._pumping.done():
            self._pumping = asyncio.create_task(self._keep_pumping())

    async def _keep_pumping(self) -> None:
        while self.queue.num_requests:
            await asyncio.sleep(_POLL_S)
            self._pump()

    def _pump(self) -> None:
        """Grants turns while there is room."""
        while (first := self.queue.first_priority) is not None and self._has_room(first):
            waiter = self.queue.pop()
            assert waiter is not None
            if (turn := self._turns[waiter]).done():  # its client has left this very moment
                continue
            self._drain.left(self._clock(), waiter.num_tokens)
            self._granted[waiter] = None
            turn.set_result(None)

    def _has_room(self, priority: int) -> bool:
        return has_room(
            self._replicas.usable(None),
            self._loads,
            self._background_loads if is_background(priority) else None,
            backlog_s=self._backlog_s,
            num_granted=len(self._granted),
            num_granted_tokens=sum(each.num_tokens for each in self._granted),
        )

    def _full(self) -> UnavailableError:
        queue = self.queue
        return UnavailableError(
            f"{queue.num_requests} requests of {queue.num_tokens} tokens wait for"
            f" {self.name}; the queue takes no more of them; try again later",
            headers=refusal_headers("queue_full", self._retry_after_s()),
        )

    def _retry_after_s(self) -> float:
        """Until what waits now has gone on."""
        seconds = self._drain.seconds(self.queue.num_tokens, self._clock())
        return min(_MAX_RETRY_AFTER_S, seconds or _RETRY_AFTER_S)
