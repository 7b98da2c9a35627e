"""The newest events of a stream that this router generates, for the clients that wait for them."""

import asyncio
from collections import deque

from octavo_router.resumption.events import AnswerHead, Batch

_MAX_BYTES = 256 * 1024


class Tail:
    """What is older than the newest 256 KiB is in the journal only.

    last: the number of the last event. is_ended: the answer is whole. error: why there will be no
    more of it. is_left: this router generates it no longer. num_followers: clients that are served.
    """

    def __init__(self, last: int = 0, head: AnswerHead | None = None) -> None:
        self.last = last
        self.head = head
        self.is_ended = False
        self.error: Exception | None = None
        self.is_left = False
        self.num_followers = 0
        self._batches: deque[Batch] = deque()
        self._num_bytes = 0
        self._num_read = last
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []

    def begin(self, head: AnswerHead) -> None:
        self.head = head
        self._tell()

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._num_bytes += batch.num_bytes
        self.last = batch.last
        while self._num_bytes > _MAX_BYTES and len(self._batches) > 1:
            self._num_bytes -= self._batches.popleft().num_bytes
        self._tell()

    def end(self) -> None:
        self.is_ended = True
        self._tell()

    def fail(self, error: Exception) -> None:
        self.error = error
        self._tell()

    def leave(self) -> None:
        self.is_left = True
        self._tell()

    def joined(self) -> None:
        """A client follows."""
        self.num_followers += 1

    def parted(self) -> None:
        """A client follows no longer."""
        self.num_followers -= 1
        self._tell()

    def after(self, number: int) -> list[Batch] | None:
        """The batches with events above `number`; None: some of them are gone from here.

        Whoever asks has all up to `number`.
        """
        if number > self._num_read:
            self._num_read = number
            self._tell()
        if number >= self.last:
            return []
        if not self._batches or self._batches[0].first > number + 1:
            return None
        newest = [batch for batch in reversed(self._batches) if batch.last > number]
        return newest[::-1]

    async def all_read(self) -> None:
        """Returns when a client has all that there is, or none follows."""
        while self.num_followers and self._num_read < self.last:
            await self.changed()

    async def changed(self) -> None:
        """Returns when something has, or at the next tick."""
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def tick(self) -> None:
        """Lets whoever waits look at the clock: cheaper than a timer for each that waits."""
        self._tell()

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():  # its client has left
                waiter.set_result(None)
