"""Which replica has which adapter, as far as this router knows, and which one may be asked for it.

Records tell, a second or two late. What this router has seen itself counts until they can have told
it: a load that it asked for, and an adapter that a replica turned out not to have.

A replica that could not load an adapter is left alone with it for a while, twice as long after each
further attempt, and its words are kept: a broken adapter costs its replicas an attempt now and then
however often it is asked for, and its clients hear at once what is wrong with it.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from octavo_protocol.errors import UnavailableError
from octavo_protocol.keys import HEARTBEAT_S
from octavo_protocol.records import AdapterSource, ReplicaRecord

FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
# What a load takes where no replica has measured one yet.
DEFAULT_LOAD_S = 1.0
# A record may be this much older than its arrival: one heartbeat, and one poll of discovery.
_RECORD_AGE_S = 2 * HEARTBEAT_S

Place = tuple[str, str]  # incarnation, adapter


@dataclass(frozen=True, slots=True)
class _Refusal:
    """times: in a row. until: left alone with it before that."""

    message: str
    until: float
    times: int


class AdapterHoldings:
    """Of one deployment. sources: adapters that its replicas can load, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.sources: Mapping[str, AdapterSource] = {}
        self._clock = clock
        self._held: frozenset[str] = frozenset()
        self._loaded: dict[Place, float] = {}
        self._missing: dict[Place, float] = {}
        self._refusals: dict[Place, _Refusal] = {}

    def take_sources(self, sources: Iterable[AdapterSource]) -> None:
        """The newest registered ones. What has changed may be tried again at once."""
        former, self.sources = self.sources, {each.name: each for each in sources}
        self._refusals = {
            place: refusal
            for place, refusal in self._refusals.items()
            if self.sources.get(place[1]) == former.get(place[1])
        }

    def take_records(self, records: Collection[ReplicaRecord]) -> None:
        """The newest truth of the replicas."""
        self._held = frozenset(name for record in records for name in record.adapters)
        incarnations = {record.incarnation for record in records}
        recent = self._clock() - _RECORD_AGE_S
        self._loaded = _kept(self._loaded, incarnations, recent)
        self._missing = _kept(self._missing, incarnations, recent)
        self._refusals = {
            place: each for place, each in self._refusals.items() if place[0] in incarnations
        }

    def names(self) -> frozenset[str]:
        """Adapters that replicas have."""
        return self._held

    def __contains__(self, name: str | None) -> bool:
        """Whether `name` is an adapter's."""
        return name in self.sources or name in self._held

    def origin(self, name: str) -> str | None:
        """Where the adapter's files come from, where that is registered."""
        source = self.sources.get(name)
        return None if source is None else source.origin

    def has(self, record: ReplicaRecord, name: str) -> bool:
        """Whether the replica answers for the adapter now, perhaps after a load of its own."""
        place = record.incarnation, name
        recent = self._clock() - _RECORD_AGE_S
        loaded, missing = self._loaded.get(place, -math.inf), self._missing.get(place, -math.inf)
        if max(loaded, missing) > recent:
            return loaded >= missing
        return name in record.adapters

    def flaw(self, record: ReplicaRecord, name: str) -> str | None:
        """Why the replica cannot answer for the adapter, not even after a load."""
        if self.has(record, name):
            return None
        if name not in self.sources:
            return "serves other models"
        if not record.max_adapters:
            return "takes no adapters"
        if (refusal := self._refusal(record.incarnation, name)) is not None:
            return f"did not load the adapter: {refusal.message}"
        return None

    def load_seconds(self, records: Sequence[ReplicaRecord], name: str | None) -> list[float]:
        """How long a request for `name` waits for a load on each; 0 where it does not."""
        if name is None or name not in self:
            return [0.0] * len(records)
        known = [record.adapter_load_s for record in records if record.adapter_load_s]
        usual = sum(known) / len(known) if known else DEFAULT_LOAD_S
        return [
            0.0 if self._is_loaded(record, name) else record.adapter_load_s or usual
            for record in records
        ]

    def _is_loaded(self, record: ReplicaRecord, name: str) -> bool:
        if name in record.served_names:
            return True
        is_told = name in record.loaded_adapters or name not in record.adapters
        return is_told and self.has(record, name)

    def identity(self, records: Iterable[ReplicaRecord], name: str | None) -> str | None:
        """What blocks of requests for `name` bind, by the version that most replicas have: empty
        where it is no adapter; None while no replica tells a version.
        """
        if not name or name not in self:
            return ""
        versions = (record.adapter_versions.get(name) for record in records)
        counted = Counter(filter(None, versions)).most_common(1)
        return f"{name}@{counted[0][0]}" if counted else None

    def note_loaded(self, incarnation: str, name: str) -> None:
        self._loaded[incarnation, name] = self._clock()
        self._refusals.pop((incarnation, name), None)

    def note_missing(self, incarnation: str, name: str) -> None:
        """The replica does not know the adapter, whatever its record says."""
        self._missing[incarnation, name] = self._clock()
        self._loaded.pop((incarnation, name), None)

    def note_refused(self, incarnation: str, name: str, message: str) -> None:
        """It could not load the adapter. message: why, in its own words."""
        former = self._refusals.get((incarnation, name))
        times = former.times + 1 if former is not None else 1
        pause = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 20))
        refusal = _Refusal(message, self._clock() + pause, times)
        self._refusals[incarnation, name] = refusal

    def error(self, name: str | None) -> UnavailableError | None:
        """What a request for the adapter hears while no replica can load it; None: nothing is
        known against it.
        """
        for incarnation, adapter in self._refusals:
            if adapter == name and (refusal := self._refusal(incarnation, adapter)) is not None:
                return UnavailableError(
                    f"the adapter {name!r} cannot be loaded: {refusal.message}",
                    parameter="model",
                    code="adapter_not_loaded",
                )
        return None

    def _refusal(self, incarnation: str, name: str) -> _Refusal | None:
        refusal = self._refusals.get((incarnation, name))
        return refusal if refusal is not None and self._clock() < refusal.until else None


def _kept(
    noted: Mapping[Place, float], incarnations: Collection[str], recent: float
) -> dict[Place, float]:
    return {place: at for place, at in noted.items() if place[0] in incarnations and at > recent}
