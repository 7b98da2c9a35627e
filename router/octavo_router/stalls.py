"""Requests that wait for a first byte which will not come: the replica took them and is silent.

A request is taken from its replica when

- it has waited for 10 s and, on top, five times as long as was expected (a trial: 2 s and twice),
- for as long the replica sent nothing on any connection of this router, and
- another replica that could take it is not silent itself.

A slow replica sends something: it is not touched, however long its queue is. Where all are silent
nobody gains from moving. A request is moved once at most, and each move takes a retry from the
budget, so that no load is multiplied.

Whole (not streamed) answers send nothing until their end, and nobody knows how long they generate:
they are moved only when, besides, the replica's heartbeats have ended.
"""

import heapq
import time
from collections.abc import Callable, Collection

from octavo_router.health import Attempt

# Seconds, and how many times as long as was expected.
_PATIENCE = (10.0, 5.0)
_TRIAL_PATIENCE = (2.0, 2.0)


class StallWatch:
    """Attempts whose first byte has not come, and when each replica was last heard."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[Attempt, Callable[[], None]] = {}
        self._known: Collection[str] = ()
        self._heard_at: dict[str, float] = {}

    def keep(self, incarnations: Collection[str]) -> None:
        """These are the replicas whose heartbeats come."""
        self._known = incarnations
        self._heard_at = {each: at for each, at in self._heard_at.items() if each in incarnations}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def wait(self, attempt: Attempt, give_up: Callable[[], None]) -> None:
        """An answer is asked for. give_up: ends the attempt."""
        self._waiting[attempt] = give_up

    def heard(self, incarnation: str) -> None:
        """The replica sent something."""
        self._heard_at[incarnation] = self._clock()

    def done(self, attempt: Attempt) -> None:
        """Its first byte came, or it ended."""
        self._waiting.pop(attempt, None)

    def stalled(self, usable: Collection[str]) -> list[Attempt]:
        """The attempts that should go elsewhere. usable: replicas that could take them."""
        now = self._clock()
        silence = self._silence(now)
        # Of two, one at least is another than the attempt's own.
        loudest = heapq.nsmallest(2, usable, key=lambda each: silence.get(each, 0.0))
        return [
            attempt
            for attempt in self._waiting
            if min(silence.get(attempt.incarnation, 0.0), now - attempt.sent_at)
            > _patience_s(attempt)
            and (attempt.is_stream or attempt.incarnation not in self._known)
            and any(
                silence.get(other, 0.0) < _patience_s(attempt) / 2
                for other in loudest
                if other != attempt.incarnation
            )
        ]

    def give_up(self, attempt: Attempt) -> None:
        """Ends an attempt that waits."""
        self._waiting.pop(attempt)()

    def _silence(self, now: float) -> dict[str, float]:
        """Seconds for which replicas that should say something have not."""
        silence: dict[str, float] = {}
        for attempt in self._waiting:
            if not attempt.is_stream and attempt.incarnation in self._known:
                continue  # it need not say anything yet
            heard_at = self._heard_at.get(attempt.incarnation, attempt.sent_at)
            silent_s = now - max(heard_at, attempt.sent_at)
            known_s = silence.get(attempt.incarnation, 0.0)
            silence[attempt.incarnation] = max(known_s, silent_s)
        return silence


def _patience_s(attempt: Attempt) -> float:
    least_s, ratio = _TRIAL_PATIENCE if attempt.is_trial else _PATIENCE
    return least_s + ratio * attempt.expected_s
