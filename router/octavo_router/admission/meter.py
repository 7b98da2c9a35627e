"""Watches one answer on its way to the client, to know what it used."""

from collections.abc import Mapping

from octavo_protocol.asgi import Message, Send
from octavo_router.stream_trace import StreamTrace
from octavo_router.tenancy.usage import TokenCounts, counts_of_answer, counts_of_events

_USAGE = b'"usage"'
_EVENT_STREAM = b"text/event-stream"


class Meter:
    """Stands for `send`. headers: added to the answer. status: None until it begins.

    A stream that has begun elsewhere is counted from here on: its first router counted the rest.

    A whole answer tells its tokens. Of a stream the trace tells them, whether or not the client
    asked for its usage, and up to where it was broken off; without a trace the events that tell.
    """

    def __init__(self, send: Send, stream: StreamTrace, headers: Mapping[str, str]) -> None:
        self._send = send
        self._stream = stream
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._is_stream = stream.has_begun
        self._told = b""
        self.status = 200 if stream.has_begun else None
        self._num_before = stream.token_counts()[1] if stream.has_begun else None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_stream = any(
                name == b"content-type" and value.startswith(_EVENT_STREAM)
                for name, value in message["headers"]
            )
            message["headers"] = [*message["headers"], *self._headers]
        elif not self._is_stream:
            self._told = message["body"]
        elif self._stream.head is None and _USAGE in message["body"]:
            self._told += message["body"]
        await self._send(message)

    def counts(self, num_prompt_tokens: int) -> TokenCounts:
        """num_prompt_tokens: of the request, for answers that do not tell."""
        if self.status is not None and self.status >= 400:
            return TokenCounts()
        if self._is_stream and self._stream.head is not None:
            cached, output = self._stream.token_counts()
            if self._num_before is not None:
                return TokenCounts(output=output - self._num_before)
            return TokenCounts(num_prompt_tokens, cached, output)
        told = counts_of_events(self._told) if self._is_stream else counts_of_answer(self._told)
        return told or TokenCounts(prompt=num_prompt_tokens)
