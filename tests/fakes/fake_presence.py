"""A fake replica's side of Redis: its record, its KV events, its snapshots."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import redis.asyncio
import redis.exceptions

from octavo_protocol.keys import EVENT_FIELD, RECORD_TTL_S, SNAPSHOT_TTL_S, Keys
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    KVEvent,
    KVEventBatch,
    KVSnapshot,
    ReplicaRecord,
    encode,
)
from octavo_protocol.tasks import stop_tasks

_BEAT_S = 0.1


class FakePresence:
    """Tells Redis what `record` says and which blocks are cached, until it is stopped.

    cached: the blocks that the replica really holds. seq: number of its newest batch.
    num_snapshots: snapshots written, the first one included.
    """

    def __init__(self, redis_url: str, keys: Keys, record: Callable[[], ReplicaRecord]) -> None:
        self.cached: dict[bytes, None] = {}
        self.seq = 0
        self.num_snapshots = 0
        self._client = redis.asyncio.Redis.from_url(
            redis_url, socket_timeout=2, socket_connect_timeout=2
        )
        self._keys = keys
        self._record = record
        self._incarnation = record().incarnation
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._write_snapshot()
        await self.beat()
        self._task = asyncio.create_task(self._run())

    async def stop(self, *, is_clean: bool) -> None:
        """is_clean: deletes the record, as after SIGTERM; otherwise it stays until it expires."""
        if self._task is not None:
            await stop_tasks([self._task])
        if is_clean:
            with suppress(redis.exceptions.RedisError, OSError):
                await self._client.delete(self._keys.replica(self._record().replica_id))
        await self._client.aclose()

    async def beat(self) -> None:
        """Writes the record now."""
        record = self._record()
        await self._client.set(
            self._keys.replica(record.replica_id), encode(record), ex=RECORD_TTL_S
        )
        now = await self._client.time()
        await self._client.zadd(self._keys.replicas, {record.replica_id: float(now[0])})

    async def store(self, hashes: Sequence[bytes]) -> None:
        """Caches blocks and says so."""
        new = [block_hash for block_hash in hashes if block_hash not in self.cached]
        self.cached.update(dict.fromkeys(new))
        if new:
            await self._publish([BlocksStored(None, new)])

    async def evict(self, hashes: Sequence[bytes], *, is_told: bool = True) -> None:
        """Removes blocks; not told: the batch gets a number and is lost."""
        for block_hash in hashes:
            self.cached.pop(block_hash, None)
        if is_told:
            await self._publish([BlocksRemoved(list(hashes))])
        else:
            self.seq += 1

    async def _run(self) -> None:
        while True:
            with suppress(redis.exceptions.RedisError, OSError):
                await self.beat()
                wanted = await self._client.getdel(self._keys.snapshot_wanted(self._incarnation))
                exists = await self._client.exists(self._keys.events(self._incarnation))
                if wanted is not None or not exists:
                    await self._write_snapshot()
            await asyncio.sleep(_BEAT_S)

    async def _publish(self, events: list[KVEvent]) -> None:
        self.seq += 1
        with suppress(redis.exceptions.RedisError, OSError):
            await self._append(KVEventBatch(self.seq, events))

    async def _write_snapshot(self) -> None:
        self.seq += 2  # the gap sends consumers to the snapshot
        self.num_snapshots += 1
        key = self._keys.snapshot(self._incarnation)
        snapshot = encode(KVSnapshot(self.seq, list(self.cached)))
        await self._client.set(key, snapshot, ex=SNAPSHOT_TTL_S)
        await self._append(KVEventBatch(self.seq, []))

    async def _append(self, batch: KVEventBatch) -> None:
        fields: dict[Any, Any] = {EVENT_FIELD: encode(batch)}
        await self._client.xadd(
            self._keys.events(self._incarnation), fields, id=f"{batch.seq}-0", maxlen=1000
        )


def new_record(replica_id: str, **fields: Any) -> ReplicaRecord:
    """A record of a fake: one model "fake" of 16-token blocks, unless `fields` say otherwise."""
    record = ReplicaRecord(
        replica_id=replica_id,
        incarnation=secrets.token_hex(8),
        url="",
        model="fake",
        served_names=["fake"],
        cache_model="fake@1",
        block_size=16,
        num_blocks=1000,
        max_model_len=4096,
        prefill_tokens_per_s=5000.0,
        decode_tokens_per_s=500.0,
    )
    return msgspec.structs.replace(record, **fields)
