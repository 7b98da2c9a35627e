"""What a deployment's replicas publish about their caches, brought into its prefix index. No I/O.

Per incarnation: a snapshot, then the batches after it, in order. A number that is missing means
that events were lost: the index forgets the replica's blocks until a snapshot that is new enough
has come (the replica writes one when it is asked).
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from octavo_protocol.keys import EVENT_FIELD
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KVEventBatch,
    decode_batch,
    decode_snapshot,
)
from octavo_router.prefix_index import PrefixIndex

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Position:
    """seq: the newest batch taken in. wanted: a snapshot at least this new is waited for."""

    seq: int = 0
    wanted: int | None = 0


class CachedBlocks:
    """Keeps one deployment's index true to its replicas' streams. num_gaps: times it was not."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._positions: dict[str, _Position] = {}
        self.num_gaps = 0

    def follow(self, incarnations: Iterable[str]) -> None:
        """These are the live ones; others are forgotten."""
        live = set(incarnations)
        for incarnation in self._positions.keys() - live:
            del self._positions[incarnation]
            self._index.drop(incarnation)
        for incarnation in live - self._positions.keys():
            self._positions[incarnation] = _Position()

    def waiting(self) -> list[str]:
        """Incarnations whose snapshot is to be read."""
        return [name for name, each in self._positions.items() if each.wanted is not None]

    def positions(self) -> dict[str, int]:
        """The newest batch taken in, of each incarnation whose stream is to be read on."""
        return {name: each.seq for name, each in self._positions.items() if each.wanted is None}

    def take_snapshot(self, incarnation: str, raw: bytes | None) -> bool:
        """What there is in the place of a snapshot. False: a newer one is still wanted."""
        position = self._positions.get(incarnation)
        if position is None or position.wanted is None:
            return True
        if raw is None:
            return False
        try:
            snapshot = decode_snapshot(raw)
        except msgspec.DecodeError as error:
            logger.warning("the snapshot of %s cannot be read: %s", incarnation, error)
            return False
        if snapshot.seq < position.wanted:
            return False
        self._index.clear(incarnation)
        self._index.add(incarnation, snapshot.hashes)
        position.seq, position.wanted = snapshot.seq, None
        return True

    def take_batch(self, incarnation: str, fields: dict[bytes, bytes]) -> None:
        """The next entry of its stream."""
        position = self._positions.get(incarnation)
        if position is None or position.wanted is not None:
            return
        try:
            batch = decode_batch(fields[EVENT_FIELD])
        except (msgspec.DecodeError, KeyError) as error:
            logger.warning("a batch of %s cannot be read: %s", incarnation, error)
            self._lose(incarnation, position, position.seq + 1)
            return
        if batch.seq <= position.seq:
            return
        if batch.seq != position.seq + 1:
            self._lose(incarnation, position, batch.seq)
            return
        position.seq = batch.seq
        self._apply(incarnation, batch)

    def distrust(self, incarnation: str) -> None:
        """Forgets the replica's blocks until a fresh snapshot comes."""
        position = self._positions.get(incarnation)
        if position is not None and position.wanted is None:
            self._lose(incarnation, position, position.seq + 1)

    def _apply(self, incarnation: str, batch: KVEventBatch) -> None:
        for event in batch.events:
            match event:
                case BlocksStored():
                    self._index.add(incarnation, event.hashes)
                case BlocksRemoved():
                    self._index.remove(incarnation, event.hashes)
                case CacheCleared():
                    self._index.clear(incarnation)

    def _lose(self, incarnation: str, position: _Position, wanted: int) -> None:
        self.num_gaps += 1
        position.wanted = wanted
        self._index.clear(incarnation)
