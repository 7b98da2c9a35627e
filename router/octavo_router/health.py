"""Which replicas are left alone for a while because of how they answered. Pure; the clock is given.

| Cause | A replica is ejected when | For |
|---|---|---|
| broken | a connection to it failed or broke | 0.5 s, doubling to 5 s |
| errors | five answers in a row were 5xx, while another replica answers | 5 s, doubling to 60 s |
| failures | of its last 50 answers a quarter more failed than of the others' | likewise |
| slow | first bytes take four times as long as expected and at others | likewise |
| stalled | it sent nothing while a request waited long (`stalls.py`) | likewise |

All but the first are relative to other replicas: what ails all of them is no reason to send their
load to the rest. So they hold for at most a share of the replicas. What is expected of a replica
counts its queue and its own rates: a replica that says that it is slow is not sick.

When its time is over one request tries the replica: its first byte ends the ejection, its failure
begins a longer one. While neither comes, as from a whole answer that takes long, another one tries
it every five seconds; a connection that holds for half a second is not broken. What a heartbeat
says changes nothing of this. Sources: Envoy's outlier detection; the half-open state of circuit
breakers (Nygard, "Release It!").
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum

MAX_EJECTED_SHARE = 0.5
_ERRORS_IN_A_ROW = 5
_MIN_OUTCOMES, _MAX_OUTCOMES = 20, 50
_FAILURE_MARGIN = 0.25
_MIN_WAITS, _MAX_WAITS = 8, 16
_SLOW_RATIO = 4.0
_SLOW_MARGIN_S = 1.0
_LEAST_EXPECTED_S = 0.05
# Another ejection this soon after the last one's end lasts longer than that.
_MEMORY_S = 60.0


class Cause(StrEnum):
    BROKEN = "broken"
    ERRORS = "errors"
    FAILURES = "failures"
    SLOW = "slow"
    STALLED = "stalled"

    @property
    def seconds(self) -> tuple[float, float]:
        """How long the first ejection lasts, and the longest."""
        return (0.5, 5.0) if self is Cause.BROKEN else (5.0, 60.0)

    @property
    def trial_s(self) -> float:
        """For how long a request that tries the replica keeps others from it."""
        return self.seconds[0]


@dataclass(slots=True, eq=False)
class Attempt:
    """One request at one replica. expected_s: until the first token. is_stream: whose first byte
    tells of that; a whole answer has none before its end. is_trial: it alone was let through to a
    replica whose ejection is over.
    """

    incarnation: str
    expected_s: float
    sent_at: float
    is_stream: bool = True
    is_trial: bool = False


@dataclass(slots=True)
class _Ejection:
    cause: Cause
    since: float
    until: float
    trial: Attempt | None = None


@dataclass(slots=True)
class _Record:
    """outcomes: of the last answers, True for failures. waits: of the last streams, how long the
    first byte took and was expected to take. ejection: that holds. last_s, last_until: length and
    end of the last one.
    """

    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=_MAX_OUTCOMES))
    waits: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MAX_WAITS))
    errors_in_a_row: int = 0
    ejection: _Ejection | None = None
    last_s: float = 0.0
    last_until: float = float("-inf")

    @property
    def slowness(self) -> float | None:
        """Median of time taken over time expected; None: not known."""
        if len(self.waits) < _MIN_WAITS:
            return None
        return statistics.median(took / expected for took, expected in self.waits)


class ReplicaHealth:
    """Health by incarnation. max_share: of the replicas may be ejected at once, those with broken
    connections not counted.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_share: float = MAX_EJECTED_SHARE,
    ) -> None:
        self._clock = clock
        self._max_share = max_share
        self._records: dict[str, _Record] = {}

    def keep(self, incarnations: Collection[str]) -> None:
        """These are the replicas that there are."""
        self._records = {each: self._records.get(each, _Record()) for each in incarnations}

    def ejected(self, incarnation: str) -> Cause | None:
        """Why it gets no requests now."""
        record = self._records.get(incarnation)
        if record is None or (ejection := record.ejection) is None:
            return None
        now, trial = self._clock(), ejection.trial
        is_tried = trial is not None and now < trial.sent_at + ejection.cause.trial_s
        return ejection.cause if now < ejection.until or is_tried else None

    def seconds_left(self, incarnation: str) -> float:
        """Of an ejection; 0: the replica is being tried."""
        record = self._records.get(incarnation)
        until = record.ejection.until if record is not None and record.ejection else 0.0
        return max(0.0, until - self._clock())

    def sent(self, incarnation: str, expected_s: float, *, is_stream: bool = True) -> Attempt:
        """A request goes there. Every attempt must be told as `ended`, once."""
        expected_s = max(expected_s, _LEAST_EXPECTED_S)
        attempt = Attempt(incarnation, expected_s, self._clock(), is_stream)
        record = self._records.get(incarnation)
        if record is None or (ejection := record.ejection) is None or self.ejected(incarnation):
            return attempt
        if ejection.cause is Cause.BROKEN and ejection.trial is not None:
            record.ejection = None  # its connection has held
        else:
            ejection.trial = attempt
            attempt.is_trial = True
        return attempt

    def first_byte(self, attempt: Attempt) -> Cause | None:
        """A stream began. Why the replica is ejected now, if it is."""
        record = self._records.get(attempt.incarnation)
        if record is None:
            return None
        record.waits.append((self._clock() - attempt.sent_at, attempt.expected_s))
        record.errors_in_a_row = 0
        self._try_passed(record, attempt)
        return self._eject(attempt, Cause.SLOW) if self._is_slow(attempt.incarnation) else None

    def answered(self, attempt: Attempt) -> None:
        """The answer is complete."""
        record = self._records.get(attempt.incarnation)
        if record is not None:
            record.outcomes.append(False)
            record.errors_in_a_row = 0
            self._try_passed(record, attempt)

    def failed(self, attempt: Attempt, cause: Cause) -> Cause | None:
        """The answer failed; `cause` is BROKEN, ERRORS for a 5xx, or STALLED. Why the replica is
        ejected now, if it is.
        """
        record = self._records.get(attempt.incarnation)
        if record is None:
            return None
        record.outcomes.append(True)
        if attempt.is_trial or cause is not Cause.ERRORS:
            return self._eject(attempt, cause)
        record.errors_in_a_row += 1
        if record.errors_in_a_row >= _ERRORS_IN_A_ROW and self._do_others_answer(attempt):
            return self._eject(attempt, Cause.ERRORS)
        if self._fails_more_than_others(attempt.incarnation):
            return self._eject(attempt, Cause.FAILURES)
        return None

    def ended(self, attempt: Attempt) -> None:
        """It is over, in whatever way; a trial that told nothing leaves room for another."""
        record = self._records.get(attempt.incarnation)
        if record is not None and record.ejection is not None and record.ejection.trial is attempt:
            record.ejection.trial = None

    def _try_passed(self, record: _Record, attempt: Attempt) -> None:
        """Ends an ejection by the success of what was sent during it: also as the last resort."""
        ejection = record.ejection
        if ejection is not None and (attempt.is_trial or attempt.sent_at > ejection.since):
            record.ejection = None

    def _eject(self, attempt: Attempt, cause: Cause) -> Cause | None:
        record, now = self._records[attempt.incarnation], self._clock()
        old = record.ejection
        if old is not None and not (attempt.is_trial and attempt.sent_at >= old.until):
            return None  # what was sent before the ejection's end tells nothing new
        is_counted = old is not None and old.cause is not Cause.BROKEN
        if cause is not Cause.BROKEN and not is_counted and not self._is_room():
            return None
        first_s, max_s = cause.seconds
        is_again = now - record.last_until < _MEMORY_S
        record.last_s = min(max(first_s, 2 * record.last_s), max_s) if is_again else first_s
        record.last_until = now + record.last_s
        record.ejection = _Ejection(cause, now, record.last_until)
        record.outcomes.clear()
        record.waits.clear()
        record.errors_in_a_row = 0
        return cause

    def _is_room(self) -> bool:
        num_ejected = sum(
            record.ejection is not None and record.ejection.cause is not Cause.BROKEN
            for record in self._records.values()
        )
        return num_ejected + 1 <= self._max_share * len(self._records)

    def _others(self, incarnation: str) -> list[_Record]:
        return [record for each, record in self._records.items() if each != incarnation]

    def _do_others_answer(self, attempt: Attempt) -> bool:
        return any(
            record.errors_in_a_row == 0 and record.ejection is None
            for record in self._others(attempt.incarnation)
        )

    def _fails_more_than_others(self, incarnation: str) -> bool:
        own = self._records[incarnation].outcomes
        others = [outcome for record in self._others(incarnation) for outcome in record.outcomes]
        if min(len(own), len(others)) < _MIN_OUTCOMES:
            return False
        return sum(own) / len(own) >= sum(others) / len(others) + _FAILURE_MARGIN

    def _is_slow(self, incarnation: str) -> bool:
        record = self._records[incarnation]
        slowness = record.slowness
        if slowness is None or slowness < _SLOW_RATIO:
            return False
        if statistics.median(took - expected for took, expected in record.waits) < _SLOW_MARGIN_S:
            return False
        known = [each.slowness for each in self._others(incarnation)]
        others = [each for each in known if each is not None]
        return bool(others) and slowness >= _SLOW_RATIO * max(1.0, statistics.median(others))
