"""One connection to a replica: requests out, answers in, one after the other."""

import asyncio
import select
from typing import cast

from octavo_router.upstream.answer_parser import AnswerParser, BrokenAnswerError

# Of one answer, whose reader is slow.
_MAX_HELD_BYTES = 256 * 1024


class Connection(asyncio.Protocol):
    """read_s: the longest silence while an answer is waited for. kept_at: when it was last done."""

    def __init__(self, read_s: float) -> None:
        self.kept_at = 0.0
        self._read_s = read_s
        self._loop = asyncio.get_running_loop()
        self._parser: AnswerParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        self._error: OSError | None = None
        self._is_paused = False

    @property
    def is_quiet(self) -> bool:
        """Open, and the replica has sent nothing: not even that it closes a connection at rest."""
        return not self._transport.is_closing() and not self._poll.poll(0)

    @property
    def can_be_kept(self) -> bool:
        """Nothing of the last request and its answer is under way."""
        parser = self._parser
        if parser is None or not (parser.is_whole and parser.can_reuse):
            return False
        return not self._transport.is_closing() and not self._transport.get_write_buffer_size()

    def begin(self, head: bytes, body: bytes) -> AnswerParser:
        """Sends a request; returns what its answer will be in."""
        self._parser = AnswerParser()
        self._transport.writelines((head, body))
        return self._parser

    async def wait(self) -> None:
        """Until something came, or nothing more will: then the next call raises `OSError`."""
        if self._error is not None:
            raise self._error
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._heard_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._read_s, self._check_silence)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def rest(self) -> None:
        """The answer was taken; the next request may come."""
        self.kept_at = self._loop.time()
        self._parser = None

    def close(self) -> None:
        """At once; an answer that is waited for breaks."""
        self._fail(BrokenAnswerError("the connection was closed on this side"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket"), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:  # nobody asked for anything
            self.close()
            return
        self._heard_at = self._loop.time()
        try:
            parser.feed(data)
        except BrokenAnswerError as error:
            self._fail(error)
            return
        if parser.num_held > _MAX_HELD_BYTES and not parser.is_whole:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._parser is None or self._parser.is_whole or self._error is not None:
            return
        if error is not None:
            self._fail(BrokenAnswerError(f"the connection broke: {error}"))
            return
        try:
            self._parser.end()
        except BrokenAnswerError as broken:
            self._fail(broken)
        else:
            self._wake()

    def _check_silence(self) -> None:
        """Looks now and then, because a timer for each wait would cost more than the wait."""
        self._timer = None
        if self._waiter is None:
            return  # the next wait looks again
        left_s = self._heard_at + self._read_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._check_silence)
        else:
            self._fail(TimeoutError(f"nothing came for {self._read_s:g} s"))

    def _fail(self, error: OSError) -> None:
        """The answer that is waited for will not come."""
        if self._error is None:
            self._error = error
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
