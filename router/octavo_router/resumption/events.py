"""Events of a stream: cut out of its bytes, put into batches, numbered for the client.

replica:  data: {a}\n\n data: {b}\n\n          bytes, cut anywhere
Batch:    last=2, events=(data: {a}, data: {b})
client:   id: 1\ndata: {a}\n\n id: 2\ndata: {b}\n\n
"""

import msgspec

_END = b"\n\n"


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive events. last: the number of the last one, counted from 1; of an empty batch, of
    the last one before it. entries: what the replica's trace tells of them, each with a comma
    after it. The body of a whole answer is one event.
    """

    last: int
    events: tuple[bytes, ...] = ()
    entries: bytes = b""

    @property
    def first(self) -> int:
        return self.last - len(self.events) + 1

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.events)) + len(self.entries)

    def numbered(self, after: int) -> bytes:
        """The events whose numbers are above `after`, as the client gets them."""
        pairs = enumerate(self.events, self.first)
        return b"".join(b"id: %d\n%b" % (n, event) for n, event in pairs if n > after)


class AnswerHead(msgspec.Struct, frozen=True, array_like=True):
    """How an answer begins. trace: the head of its trace (`octavo_protocol/continuation.py`); None:
    no replica can go on with it.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    is_stream: bool = False
    trace: str | None = None

    @property
    def is_repeatable(self) -> bool:
        """The answer may be given again to who asks again; else it is worth another try."""
        return self.status < 500 and self.status not in (408, 429)


class EventBuffer:
    """Cuts a stream into whole events. Comments are no events: they are left out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> tuple[bytes, ...]:
        """The events that `data` makes whole."""
        *whole, self._rest = (self._rest + data).split(_END)
        return tuple(event + _END for event in whole if not _is_comment(event))

    def finish(self) -> tuple[bytes, ...]:
        """What is left of a stream that ends in the middle of an event."""
        rest, self._rest = self._rest, b""
        return (rest,) if rest else ()


def _is_comment(event: bytes) -> bool:
    return event.startswith(b":") and all(line.startswith(b":") for line in event.split(b"\n"))
