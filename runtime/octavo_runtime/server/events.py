"""An answer as server-sent events, with a status line that waits for the first of them."""

import logging
from collections.abc import AsyncGenerator

from octavo_protocol.asgi import Receive, Scope, Send, error_answer, run_unless_gone
from octavo_protocol.errors import OctavoError
from octavo_protocol.openai.answers import SSE_DONE, sse

logger = logging.getLogger(__name__)

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventResponse:
    """An ASGI response. What goes wrong before the first event is raised, so that it becomes an
    ordinary error answer; later it is an event of its own. `[DONE]` ends the stream either way.

    When the client leaves, the iterator is closed at once.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        started = False
        try:
            try:
                async for event in self._events:
                    if not started:
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                        )
                        started = True
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            finally:
                await self._events.aclose()
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, OctavoError):
                logger.exception("a stream failed")
            await send(
                {
                    "type": "http.response.body",
                    "body": sse(error_answer(error)[1]),
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": SSE_DONE, "more_body": False})
