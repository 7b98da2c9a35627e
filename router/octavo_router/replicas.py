"""The replicas that this router knows at this moment, and which of them may be used."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo_protocol.records import ReplicaRecord

_FIRST_EJECTION_S = 0.5
_MAX_EJECTION_S = 5.0


@dataclass(slots=True)
class _Ejection:
    until: float
    seconds: float


class ReplicaSet:
    """Records by incarnation. Filled by discovery, read for every request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: dict[str, ReplicaRecord] = {}
        self._ejections: dict[str, _Ejection] = {}

    def replace(self, records: Iterable[ReplicaRecord]) -> set[str]:
        """Takes the newest truth; returns the incarnations that are gone."""
        known = set(self._records)
        self._records = {record.incarnation: record for record in records}
        gone = known - set(self._records)
        for incarnation in gone:
            self._ejections.pop(incarnation, None)
        return gone

    def __contains__(self, incarnation: str) -> bool:
        return incarnation in self._records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[ReplicaRecord]:
        return list(self._records.values())

    def usable(self, model: str | None, *, without: Iterable[str] = ()) -> list[ReplicaRecord]:
        """Ready replicas that serve `model` (None: any), those of `without` left out.

        Ejected ones are left out too, unless nothing else is there.
        """
        skipped = set(without)
        candidates = [
            record
            for incarnation, record in self._records.items()
            if record.ready
            and not record.draining
            and incarnation not in skipped
            and (model is None or model in record.served_names)
        ]
        now = self._clock()
        healthy = [
            record
            for record in candidates
            if (ejection := self._ejections.get(record.incarnation)) is None
            or ejection.until <= now
        ]
        return healthy or candidates

    def served_names(self) -> list[str]:
        return sorted({name for record in self._records.values() for name in record.served_names})

    def failed(self, incarnation: str) -> None:
        """It refused or broke a connection: not used for a while, longer each time."""
        if incarnation not in self._records:  # it left while it answered
            return
        old = self._ejections.get(incarnation)
        seconds = min(old.seconds * 2, _MAX_EJECTION_S) if old else _FIRST_EJECTION_S
        self._ejections[incarnation] = _Ejection(self._clock() + seconds, seconds)

    def succeeded(self, incarnation: str) -> None:
        self._ejections.pop(incarnation, None)
