"""What one client gets of a stream, and how far it is."""

from collections.abc import Iterable

from octavo_protocol.asgi import Send
from octavo_router.resumption.events import AnswerHead, Batch

RESUMABLE_HEADER = b"x-octavo-resumable"
_KEEP_ALIVE = b": keep-alive\n\n"


class Answer:
    """after: the number of the last event that the client had. has_begun: it has the status line.
    last: the number of the last event that it has now.
    """

    def __init__(self, send: Send, after: int) -> None:
        self._send = send
        self._head: AnswerHead | None = None
        self.last = after

    @property
    def has_begun(self) -> bool:
        return self._head is not None

    async def begin(self, head: AnswerHead) -> None:
        """Sends the status line, where it was not sent."""
        if self._head is not None:
            return
        self._head = head
        headers = [*head.headers, (RESUMABLE_HEADER, b"1")]
        await self._send({"type": "http.response.start", "status": head.status, "headers": headers})

    async def write(self, batches: Iterable[Batch]) -> None:
        """Sends the events that the client does not have; after `begin`."""
        assert self._head is not None
        data = []
        for batch in batches:
            if batch.last > self.last:
                is_stream = self._head.is_stream
                data.append(batch.numbered(self.last) if is_stream else batch.events[0])
                self.last = batch.last
        if data:
            await self._write(b"".join(data))

    async def keep_alive(self) -> None:
        """Sends a comment into a stream that is silent."""
        if self._head is not None and self._head.is_stream:
            await self._write(_KEEP_ALIVE)

    async def finish(self, ending: bytes = b"") -> None:
        """Ends the answer, with an event that has no number where `ending` is given."""
        await self._write(ending, is_last=True)

    async def _write(self, data: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})
