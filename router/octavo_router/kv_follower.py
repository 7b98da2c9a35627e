"""Follows the replicas' KV event streams into the prefix index.

Per incarnation: read the snapshot, then the batches after it, in order. A number that is missing
means that events were lost: the index forgets the replica's blocks until a snapshot that is new
enough has come (the replica writes one when it is asked).
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import redis.asyncio
import redis.exceptions

from octavo_protocol.keys import EVENT_FIELD, Keys
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KVEventBatch,
    KVSnapshot,
    decode_batch,
    decode_snapshot,
)
from octavo_router.prefix_index import PrefixIndex
from octavo_router.replicas import ReplicaSet

logger = logging.getLogger(__name__)

_BLOCK_MS = 200
_COUNT = 200
_WANTED_TTL_S = 10


@dataclass(slots=True)
class _Position:
    """seq: the newest batch taken in. wanted: a snapshot at least this new is waited for."""

    seq: int = 0
    wanted: int | None = 0


class KVFollower:
    """Applies what the replicas publish. One per deployment."""

    def __init__(self, index: PrefixIndex, replicas: ReplicaSet, keys: Keys) -> None:
        self._index = index
        self._replicas = replicas
        self._keys = keys
        self._positions: dict[str, _Position] = {}
        self.num_gaps = 0

    async def follow(self, client: "redis.asyncio.Redis") -> None:
        """Runs until cancelled; goes on after Redis was away."""
        while True:
            try:
                await self.poll(client)
            except (redis.exceptions.RedisError, OSError):  # discovery tells of it
                await asyncio.sleep(_BLOCK_MS / 1000)

    def distrust(self, incarnation: str) -> None:
        """Forgets the replica's blocks until a fresh snapshot comes."""
        position = self._positions.get(incarnation)
        if position is not None and position.wanted is None:
            self._lose(incarnation, position, position.seq + 1)

    async def poll(self, client: "redis.asyncio.Redis") -> None:
        """One round: snapshots that are waited for, then new batches of all others."""
        live = {record.incarnation for record in self._replicas.records if record.block_size}
        for incarnation in self._positions.keys() - live:
            del self._positions[incarnation]
            self._index.drop(incarnation)
        for incarnation in live - self._positions.keys():
            self._positions[incarnation] = _Position()
        for incarnation, position in list(self._positions.items()):
            if position.wanted is not None:
                await self._read_snapshot(client, incarnation, position)
        streams: dict[Any, Any] = {
            self._keys.events(incarnation): f"{position.seq}-0"
            for incarnation, position in self._positions.items()
            if position.wanted is None
        }
        if not streams:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        is_waiting = len(streams) < len(self._positions)
        answer = await client.xread(streams, count=_COUNT, block=None if is_waiting else _BLOCK_MS)
        if is_waiting and not answer:
            await asyncio.sleep(_BLOCK_MS / 1000)
        by_key = {self._keys.events(incarnation): incarnation for incarnation in self._positions}
        for key, entries in _pairs(answer):
            incarnation = by_key[key.decode()]
            for _, fields in entries:
                self._apply(incarnation, fields)

    def _apply(self, incarnation: str, fields: dict[bytes, bytes]) -> None:
        position = self._positions[incarnation]
        if position.wanted is not None:
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
        self._take(incarnation, batch)

    def _take(self, incarnation: str, batch: KVEventBatch) -> None:
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

    async def _read_snapshot(
        self, client: "redis.asyncio.Redis", incarnation: str, position: _Position
    ) -> None:
        assert position.wanted is not None
        raw = cast(bytes | None, await client.get(self._keys.snapshot(incarnation)))
        if raw is not None:
            try:
                snapshot = decode_snapshot(raw)
            except msgspec.DecodeError as error:
                logger.warning("the snapshot of %s cannot be read: %s", incarnation, error)
                snapshot = KVSnapshot(-1, [])
            if snapshot.seq >= position.wanted:
                self._index.clear(incarnation)
                self._index.add(incarnation, snapshot.hashes)
                position.seq, position.wanted = snapshot.seq, None
                return
        await client.set(self._keys.snapshot_wanted(incarnation), b"1", ex=_WANTED_TTL_S, nx=True)


def _pairs(answer: Any) -> list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    """XREAD's answer as (key, entries), whichever form the client library gives it."""
    if not answer:
        return []
    if isinstance(answer, dict):
        return [
            (key, entries[0] if len(entries) == 1 and isinstance(entries[0], list) else entries)
            for key, entries in answer.items()
        ]
    return [(key, entries) for key, entries in answer]
