"""KV events from the engine to Redis: a stream of batches, and snapshots for who missed some.

The publisher keeps a mirror of the cached hashes, so that a snapshot can be written at any time:
at the start, when a consumer asks, and when Redis comes back after it was away. While Redis is
away, batches are not kept: the mirror is, and the snapshot that follows says everything.
"""

import logging
from typing import Any

import redis.asyncio
import redis.exceptions

from octavo_protocol.keys import EVENT_FIELD, EVENT_STREAM_MAXLEN, SNAPSHOT_TTL_S, Keys
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KVEvent,
    KVEventBatch,
    KVSnapshot,
    encode,
)

logger = logging.getLogger(__name__)

_MAX_PENDING = 1000


class KVPublisher:
    """`add` is called in the event loop by the engine's side; `flush` by the heartbeat's task.

    seq: number of the newest batch that was sent. Batches that follow each other without a gap say
    everything; a number that is missing says: read the snapshot.
    """

    def __init__(self, keys: Keys, incarnation: str) -> None:
        self._keys = keys
        self._incarnation = incarnation
        self._mirror: dict[bytes, None] = {}
        self._pending: list[KVEvent] = []
        self._needs_snapshot = True
        self.seq = 0

    def add(self, events: list[KVEvent]) -> None:
        """Takes in the events of one step."""
        for event in events:
            match event:
                case BlocksStored():
                    self._mirror.update(dict.fromkeys(event.hashes))
                case BlocksRemoved():
                    for block_hash in event.hashes:
                        self._mirror.pop(block_hash, None)
                case CacheCleared():
                    self._mirror.clear()
        if self._needs_snapshot:
            return
        self._pending += events
        if len(self._pending) > _MAX_PENDING:
            self.lost()

    def lost(self) -> None:
        """What was sent may be gone: the next flush writes a snapshot."""
        self._pending.clear()
        self._needs_snapshot = True

    async def flush(self, client: "redis.asyncio.Redis") -> None:
        """Sends what is pending. Raises `redis.exceptions.RedisError`; call `lost` then."""
        if self._needs_snapshot:
            await self._write_snapshot(client)
        elif self._pending:
            events, self._pending = self._pending, []
            self.seq += 1
            await self._append(client, KVEventBatch(self.seq, events))

    async def answer_wanted(self, client: "redis.asyncio.Redis") -> None:
        """Writes a snapshot if a consumer asked for one, or if Redis has lost something.

        A Redis that restarts within a heartbeat is seen by its empty place for the snapshot only:
        the client connects again by itself, and the next batch makes a new stream.
        """
        snapshot = self._keys.snapshot(self._incarnation)
        stream = self._keys.events(self._incarnation)
        wanted = await client.getdel(self._keys.snapshot_wanted(self._incarnation))
        num_kept = await client.exists(snapshot, stream)
        if wanted is not None or num_kept < 2:
            self.lost()
            await self.flush(client)
        else:
            await client.expire(snapshot, SNAPSHOT_TTL_S)
            await client.expire(stream, SNAPSHOT_TTL_S)

    async def delete(self, client: "redis.asyncio.Redis") -> None:
        await client.delete(
            self._keys.events(self._incarnation),
            self._keys.snapshot(self._incarnation),
            self._keys.snapshot_wanted(self._incarnation),
        )

    async def _write_snapshot(self, client: "redis.asyncio.Redis") -> None:
        # One number is left out: consumers see a gap in the stream and turn to the snapshot, since
        # events may have been lost before it. The empty batch makes the stream exist again.
        self.seq += 2
        self._needs_snapshot = False
        snapshot = KVSnapshot(self.seq, list(self._mirror))
        await client.set(
            self._keys.snapshot(self._incarnation), encode(snapshot), ex=SNAPSHOT_TTL_S
        )
        await self._append(client, KVEventBatch(self.seq, []))

    async def _append(self, client: "redis.asyncio.Redis", batch: KVEventBatch) -> None:
        fields: dict[Any, Any] = {EVENT_FIELD: encode(batch)}
        key = self._keys.events(self._incarnation)
        await client.xadd(
            key, fields, id=f"{batch.seq}-0", maxlen=EVENT_STREAM_MAXLEN, approximate=True
        )
        await client.expire(key, SNAPSHOT_TTL_S)
