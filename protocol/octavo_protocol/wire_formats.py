"""How each API that Octavo speaks writes an error, and how its streams end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo_protocol.anthropic.answers import error_event
from octavo_protocol.openai.answers import SSE_DONE, sse
from octavo_protocol.openai.response_answers import named_event


class _ResponsesError(msgspec.Struct):
    """The `error` event of a stream of /v1/responses."""

    message: str
    code: str | None = None
    param: str | None = None
    sequence_number: int = 0
    type: str = "error"


@dataclass(frozen=True, slots=True)
class WireFormat:
    """endings: a stream is whole when it holds one of these.

    body: status and OpenAI's error envelope to this API's error body. event: likewise, to what ends
    a stream that fails.
    """

    endings: tuple[bytes, ...]
    body: Callable[[int, dict[str, Any]], Any]
    event: Callable[[int, dict[str, Any]], bytes]

    @property
    def longest_ending(self) -> int:
        return max(map(len, self.endings))

    def is_ended(self, data: bytes) -> bool:
        """Whether `data`, the end of a stream, holds an ending."""
        return any(ending in data for ending in self.endings)


def _as_it_is(status: int, envelope: dict[str, Any]) -> dict[str, Any]:
    return envelope


OPENAI = WireFormat(
    endings=(SSE_DONE,),
    body=_as_it_is,
    event=lambda status, envelope: sse(envelope) + SSE_DONE,
)
RESPONSES = WireFormat(
    endings=(
        b"event: response.completed\n",
        b"event: response.incomplete\n",
        b"event: response.failed\n",
        b"event: error\n",
    ),
    body=_as_it_is,
    event=lambda status, envelope: named_event(
        _ResponsesError(envelope["error"]["message"], str(envelope["error"]["code"]))
    ),
)
ANTHROPIC = WireFormat(
    endings=(b"event: message_stop\n", b"event: error\n"),
    body=lambda status, envelope: error_event(status, envelope["error"]["message"]),
    event=lambda status, envelope: named_event(error_event(status, envelope["error"]["message"])),
)


def wire_format(path: str) -> WireFormat:
    """The format of a route."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return RESPONSES if path.startswith("/v1/responses") else OPENAI
