"""One client's stream: what may be passed on of it, and what another replica needs to go on.

A traced stream has marks between its events (`octavo_protocol/continuation.py`). What comes after
the last mark is held until the next one. So a stream can be broken off anywhere without a gap or a
repetition: what is held is thrown away.
"""

import re

import msgspec

from octavo_protocol.continuation import CONTINUE, MARK, TraceEntry, continuation_body
from octavo_protocol.wire_formats import WireFormat

_MARK_LINE = re.compile(rb"^%s([^\n]*)\n" % MARK, re.MULTILINE)
_EVENT_END = b"\n\n"


class StreamTrace:
    """Fed with the bytes of one replica after another.

    head: names the answer; None: replicas cannot go on with it, and nothing is held. has_begun: the
    client has got the status line. num_passed: bytes of the body that it has got after that.
    """

    def __init__(self, format: WireFormat) -> None:
        self._format = format
        self._held = b""
        self._tail = b""
        self._entries = bytearray()
        self._num_taken = 0  # bytes of them
        self._is_ended = False
        self.head: str | None = None
        self.has_begun = False
        self.num_passed = 0

    @property
    def is_whole(self) -> bool:
        """The stream's last event has come."""
        if self.head is None:
            return self._is_ended
        return self._held.endswith(_EVENT_END) and self._format.is_ended(self._held)

    @property
    def num_tokens(self) -> int:
        """Generated so far, by all choices together."""
        return self.token_counts()[1]

    def begin(self, head: str | None) -> None:
        """A replica's answer begins. head: its trace header."""
        self.head = head
        self.has_begun = True
        self._held = b""

    def restore(self, head: str, entries: bytes) -> None:
        """Goes on with what another router had. entries: all that its `take` gave."""
        self.begin(head)
        self._entries += entries
        self._num_taken = len(entries)

    def take(self) -> bytes:
        """The entries of the trace since the last call, each with a comma after it."""
        taken = bytes(self._entries[self._num_taken :])
        self._num_taken = len(self._entries)
        return taken

    def feed(self, data: bytes) -> bytes:
        """What may be passed on now that `data` has come."""
        if self.head is None:
            return self._pass(data)
        texts_and_entries = _MARK_LINE.split(self._held + data)
        self._held = texts_and_entries.pop()
        for entry in texts_and_entries[1::2]:
            if entry:
                self._entries += entry
                self._entries += b","
        passed = b"".join(texts_and_entries[::2])
        self.num_passed += len(passed)
        return passed

    def finish(self) -> bytes:
        """What is left to pass on of a whole stream."""
        held, self._held = self._held, b""
        return held

    def token_counts(self) -> tuple[int, int]:
        """Tokens of the prompt that the cache supplied, and of all outputs so far."""
        if not self._entries:
            return 0, 0
        entries = msgspec.json.decode(b"[%s]" % self._entries[:-1], type=list[TraceEntry])
        cached = [each.num_cached_tokens or 0 for each in entries]
        return max(cached, default=0), sum(len(each.token_ids) for each in entries)

    def continuation(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Path and body that ask a replica to go on with the answer to the request `body`."""
        assert self.head is not None
        return CONTINUE + path, continuation_body(self.head, bytes(self._entries[:-1]), body)

    def _pass(self, data: bytes) -> bytes:
        window = self._tail + data  # an ending may come in two pieces
        self._is_ended = self._is_ended or self._format.is_ended(window)
        self._tail = window[-self._format.longest_ending :]
        return data
