"""What this router has sent and what has come of it, beside what the replicas last said.

A replica's record is up to a second old. What this router sent after the record came is not in it
yet; what was in it may have been computed since. Both corrections are made here, so that nothing
counts twice and a burst within one second is seen.

Prompt tokens sent of late fade with a time constant of a minute: they tell whose cache is being
filled, which queues do not while a fleet idles.

A whole (not streamed) answer does not tell when its prompt was computed. A record that came long
enough after the request was sent does: from then on the record alone counts.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo_protocol.keys import HEARTBEAT_S

# A record may be this much older than its arrival: one heartbeat, and one poll of discovery.
_RECORD_AGE_S = 2 * HEARTBEAT_S
_RECENT_S = 60.0


@dataclass(slots=True)
class _Load:
    record_tokens: int = 0
    record_running: int = 0
    record_at: float = 0.0
    pending: dict[int, tuple[int, float]] = field(default_factory=dict)  # tokens, sent at
    open: set[int] = field(default_factory=set)
    computed_since_record: int = 0
    recent_tokens: float = 0.0
    recent_at: float = 0.0
    most_open: tuple[int, int] = (0, 0)  # in this window, and in the one before it
    window_at: float = 0.0

    def recent(self, now: float) -> float:
        return self.recent_tokens * math.exp((self.recent_at - now) / _RECENT_S)

    def look(self, now: float) -> int:
        """The most that were open at once in the last one or two windows."""
        if now - self.window_at >= _RECORD_AGE_S:
            self.window_at, self.most_open = now, (len(self.open), self.most_open[0])
        self.most_open = max(self.most_open[0], len(self.open)), self.most_open[1]
        return max(self.most_open)


class LoadTracker:
    """Loads by incarnation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[str, _Load] = {}
        self._next_ticket = 0

    def record(self, incarnation: str, *, waiting_tokens: int, running: int) -> None:
        """A new record of the replica came."""
        load = self._load(incarnation)
        load.record_tokens, load.record_running = waiting_tokens, running
        load.record_at = self._clock()
        load.computed_since_record = 0

    def sent(self, incarnation: str, num_uncached_tokens: int) -> int:
        """A request was sent; the ticket names it in the calls that follow."""
        self._next_ticket += 1
        load, now = self._load(incarnation), self._clock()
        load.pending[self._next_ticket] = (num_uncached_tokens, now)
        load.recent_tokens, load.recent_at = load.recent(now) + num_uncached_tokens, now
        load.open.add(self._next_ticket)
        load.look(now)
        return self._next_ticket

    def first_token(self, incarnation: str, ticket: int) -> None:
        """Its prompt is computed."""
        load = self._loads.get(incarnation)
        if load is None:
            return
        tokens, sent_at = load.pending.pop(ticket, (0, 0.0))
        if sent_at <= load.record_at:
            load.computed_since_record += tokens

    def ended(self, incarnation: str, ticket: int) -> None:
        """It is over, in whatever way."""
        load = self._loads.get(incarnation)
        if load is not None:
            load.pending.pop(ticket, None)
            load.open.discard(ticket)

    def drop(self, incarnation: str) -> None:
        self._loads.pop(incarnation, None)

    def num_queued_tokens(self, incarnation: str) -> int:
        """Prompt tokens that a new request would have to wait for."""
        load = self._loads.get(incarnation)
        if load is None:
            return 0
        doubtful = load.record_at - _RECORD_AGE_S
        own = unseen = 0
        for tokens, at in reversed(load.pending.values()):  # the newest first
            if at <= doubtful:
                break
            own += tokens
            if at > load.record_at:
                unseen += tokens
        reported = max(0, load.record_tokens - load.computed_since_record)
        return max(own, reported + unseen)

    def num_recent_tokens(self, incarnation: str) -> int:
        """Prompt tokens that were sent there in the last minute or so, to be computed."""
        load = self._loads.get(incarnation)
        return 0 if load is None else round(load.recent(self._clock()))

    def num_busy(self, incarnation: str, num_reported: int) -> int:
        """Requests that are there now. num_reported: there when the last record was made, which may
        have ended since: of those, as many count as others' as this router had not sent itself.
        """
        load = self._loads.get(incarnation)
        if load is None:
            return num_reported
        return len(load.open) + max(0, num_reported - load.look(self._clock()))

    def num_running(self, incarnation: str) -> int:
        load = self._loads.get(incarnation)
        return max(load.record_running, len(load.open)) if load is not None else 0

    def _load(self, incarnation: str) -> _Load:
        return self._loads.setdefault(incarnation, _Load())
