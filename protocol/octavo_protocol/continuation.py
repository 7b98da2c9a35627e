"""How a stream that a replica broke off goes on from another one.

A router asks for a trace with the header `TRACE_HEADER`. A replica that can be continued answers
with the same header, whose value names the answer, and writes lines between its events:

    data: {…}\n\n
    :~[0,[318,257]]\n          to a reader of events a comment

Each is a `TraceEntry`: once it has passed, all events before it may be shown, and they show the
tokens of all entries so far. So whatever a router holds back until the next such line can be thrown
away without a gap. To go on, it sends a `ContinuationRequest` to `CONTINUE` + the route's path.
"""

import re
from typing import Annotated, Any, NamedTuple

import msgspec
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

TRACE_HEADER = "x-octavo-trace"
CONTINUE = "/octavo/continue"
MARK = b":~"
CONTINUABLE = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}
)

_NOTHING = (None,) * 4  # in all fields from the third on
_encoder = msgspec.json.Encoder()
_HEAD = re.compile(r"(\d{1,12})-([0-9a-f]{32})")


class TraceEntry(NamedTuple):
    """What one choice of an answer has generated since its last entry.

    num_cached_tokens: in a choice's first entry; prompt tokens that the prefix cache supplied.
    finish_reason: in its last; stop_reason: the token id that ended it. num_events: where an API
    numbers its events, how many there were.
    """

    choice: NonNegativeInt
    token_ids: list[NonNegativeInt]
    num_cached_tokens: NonNegativeInt | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    num_events: NonNegativeInt | None = None

    def line(self) -> bytes:
        is_short = self[2:] == _NOTHING
        return MARK + _encoder.encode(self[:2] if is_short else self) + b"\n"


class TraceHead(NamedTuple):
    """What an answer keeps wherever it goes on. created: Unix time; nonce: what its ids are made
    of, 32 hexadecimal digits.
    """

    created: int
    nonce: str

    @classmethod
    def parse(cls, text: str) -> "TraceHead":
        """Raises ValueError."""
        match = _HEAD.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no head of a trace")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        return f"{self.created}-{self.nonce}"


class ContinuationRequest(BaseModel):
    """head: the trace header's value. trace: all entries so far. request: the body that was sent at
    first, with `stream`.
    """

    model_config = ConfigDict(extra="forbid")

    head: Annotated[str, Field(pattern=f"^{_HEAD.pattern}$")]
    trace: list[TraceEntry]
    request: dict[str, Any]


def continuation_body(head: str, entries: bytes, request: bytes) -> bytes:
    """A `ContinuationRequest`. entries: as they came, between commas. request: the first body."""
    return b'{"head":"%s","trace":[%s],"request":%s}' % (head.encode(), entries, request)
