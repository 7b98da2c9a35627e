"""An answer as server-sent events, with a status line that waits for the first of them."""

import asyncio
import logging
from collections.abc import AsyncGenerator

from octavo_protocol.asgi import Receive, Scope, Send, error_answer, run_unless_gone
from octavo_protocol.continuation import MARK, TRACE_HEADER
from octavo_protocol.errors import ClientError, OctavoError
from octavo_protocol.openai.answers import SSE_DONE, sse
from octavo_runtime.server.stream_trace import StreamTrace

logger = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_KEEP_ALIVE = b": keep-alive\n\n"


class EventResponse:
    """An ASGI response. What goes wrong before the first event is raised, so that it becomes an
    ordinary error answer; later it is an event of its own. `ending` closes the stream either way.

    When the client leaves, the iterator is closed at once. keep_alive_s: seconds of silence after
    which a comment is sent, also before the first event, which commits to status 200; 0: never.
    A stream that a router traces just ends where this server fails: another one goes on with it.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        trace: StreamTrace,
        *,
        keep_alive_s: float = 0.0,
        ending: bytes = SSE_DONE,
    ) -> None:
        self._events = events
        self._keep_alive_s = keep_alive_s
        self._ending = ending
        self._is_traced = trace.is_wanted
        self._headers = list(_HEADERS)
        if trace.is_wanted:
            self._headers.append((TRACE_HEADER.encode(), str(trace.head).encode()))
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        source = None
        if self._keep_alive_s:
            comment = _KEEP_ALIVE + MARK + b"\n" if self._is_traced else _KEEP_ALIVE
            source = kept_alive(self._events, self._keep_alive_s, comment)
        try:
            try:
                async for event in source or self._events:
                    if event:
                        await self._send(send, event)
            finally:
                if source is not None:
                    await source.aclose()
                await self._events.aclose()
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, OctavoError):
                logger.exception("a stream failed")
            if self._is_traced and not isinstance(error, ClientError):
                await self._send(send, b"", is_last=True)
                return
            await self._send(send, sse(error_answer(error)[1]))
        await self._send(send, self._ending, is_last=True)

    async def _send(self, send: Send, event: bytes, *, is_last: bool = False) -> None:
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await send({"type": "http.response.body", "body": event, "more_body": not is_last})


async def kept_alive(
    events: AsyncGenerator[bytes, None], interval_s: float, comment: bytes = _KEEP_ALIVE
) -> AsyncGenerator[bytes, None]:
    """`events`, and `comment` whenever none came for `interval_s` seconds."""
    following: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            if following is None:
                following = asyncio.create_task(anext(events, None))
            done, _ = await asyncio.wait({following}, timeout=interval_s)
            if not done:
                yield comment
                continue
            event = following.result()
            following = None
            if event is None:
                return
            yield event
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
