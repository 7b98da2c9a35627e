"""The replicas that this router knows at this moment, and which of them may be used."""

import time
from collections.abc import Callable, Iterable

from octavo_protocol.records import ReplicaRecord
from octavo_router.adapters.holdings import AdapterHoldings
from octavo_router.health import MAX_EJECTED_SHARE, ReplicaHealth


class ReplicaSet:
    """Records by incarnation, their health and adapters. Filled by discovery, read for every
    request.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_ejected_share: float = MAX_EJECTED_SHARE,
    ) -> None:
        self.health = ReplicaHealth(clock, max_share=max_ejected_share)
        self.adapters = AdapterHoldings(clock)
        self._records: dict[str, ReplicaRecord] = {}
        self._served: frozenset[str] = frozenset()

    def replace(self, records: Iterable[ReplicaRecord]) -> set[str]:
        """Takes the newest truth; returns the incarnations that are gone."""
        known = set(self._records)
        self._records = {record.incarnation: record for record in records}
        self.health.keep(self._records.keys())
        self.adapters.take_records(self._records.values())
        told = {name for record in self._records.values() for name in record.served_names}
        self._served = self.adapters.names() | told
        return known - set(self._records)

    def __contains__(self, incarnation: str) -> bool:
        return incarnation in self._records

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[ReplicaRecord]:
        return list(self._records.values())

    def usable(self, model: str | None, *, without: Iterable[str] = ()) -> list[ReplicaRecord]:
        """Ready replicas that serve `model` (None: any), or can load it where it is an adapter;
        those of `without` left out.

        Ejected ones are left out too, unless nothing else is there.
        """
        skipped = set(without)
        candidates = [
            record
            for incarnation, record in self._records.items()
            if incarnation not in skipped and self._flaw(record, model) is None
        ]
        healthy = [
            record for record in candidates if self.health.ejected(record.incarnation) is None
        ]
        return healthy or candidates

    def is_any_usable(self, model: str | None) -> bool:
        """Whether `usable` would have one."""
        return any(self._flaw(record, model) is None for record in self._records.values())

    def left_out(
        self, model: str | None, num_usable: int, *, without: Iterable[str] = ()
    ) -> dict[str, str]:
        """Why replicas are not among the `num_usable` usable ones, by id."""
        if num_usable == len(self._records):
            return {}
        tried = set(without)
        reasons: dict[str, str] = {}
        for incarnation, record in self._records.items():
            reason = "tried before" if incarnation in tried else self._flaw(record, model)
            if reason is None and (cause := self.health.ejected(incarnation)) is not None:
                left_s = self.health.seconds_left(incarnation)
                reason = f"ejected: {cause}, " + (f"{left_s:.1f} s left" if left_s else "on trial")
            if reason is not None:
                reasons[record.replica_id] = reason
        return reasons

    def served_names(self) -> frozenset[str]:
        """Models and adapters that replicas tell of."""
        return self._served

    def _flaw(self, record: ReplicaRecord, model: str | None) -> str | None:
        """Why a replica takes no requests for `model`."""
        if not record.ready:
            return "not ready"
        if record.draining:
            return "draining"
        if model is None or model in record.served_names:
            return None
        return self.adapters.flaw(record, model)
