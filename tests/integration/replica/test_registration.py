"""What a replica tells Redis, and what of it survives the loss of Redis."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis.asyncio

from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import EVENT_FIELD, RECORD_TTL_S, Keys
from octavo_protocol.records import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KVSnapshot,
    ReplicaRecord,
    decode_batch,
    decode_record,
    decode_snapshot,
)
from octavo_runtime.server.registration import Registration

pytestmark = [pytest.mark.integration]

KEYS = Keys("test", "replica")
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
_DEADLINE_S = 60.0


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


class Presence:
    """A registration under test, and a second connection to see what it wrote."""

    def __init__(self, url: str) -> None:
        self.draining = False
        self.num_beats = 0
        self.registration = Registration(url, KEYS, "r0")
        self.incarnation = self.registration.incarnation
        self.redis: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url)

    def start(self) -> None:
        self.registration.start(self._record, self._registered)

    async def snapshot(self) -> KVSnapshot | None:
        raw: Any = await self.redis.get(KEYS.snapshot(self.incarnation))
        return None if raw is None else decode_snapshot(raw)

    async def entries(self) -> list[tuple[bytes, Any]]:
        """(id, batch) of the whole stream."""
        raw: Any = await self.redis.xrange(KEYS.events(self.incarnation))
        return [(identifier, decode_batch(fields[EVENT_FIELD])) for identifier, fields in raw]

    async def record(self) -> ReplicaRecord | None:
        raw: Any = await self.redis.get(KEYS.replica("r0"))
        return None if raw is None else decode_record(raw)

    async def close(self) -> None:
        await self.registration.stop()
        await self.redis.aclose()

    def _registered(self) -> None:
        self.num_beats += 1

    def _record(self, incarnation: str) -> ReplicaRecord:
        return ReplicaRecord(
            replica_id="r0",
            incarnation=incarnation,
            url="http://127.0.0.1:1",
            model="m",
            cache_model="m@1",
            block_size=16,
            num_blocks=8,
            max_model_len=64,
            draining=self.draining,
        )


@pytest.fixture
async def presence(server: EmbeddedRedis) -> AsyncIterator[Presence]:
    presence = Presence(server.url)
    yield presence
    await presence.close()


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """The first true answer of `condition`; Redis may be away meanwhile."""
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            try:
                if value := await condition():
                    return value
            except (redis.exceptions.RedisError, OSError):
                pass
            await asyncio.sleep(0.02)


async def test_a_record_with_a_time_to_live_and_its_index_appear(presence: Presence) -> None:
    presence.start()

    record = await until(presence.record)

    assert record.incarnation == presence.incarnation
    assert 0 < await presence.redis.ttl(KEYS.replica("r0")) <= RECORD_TTL_S
    assert await presence.redis.zscore(KEYS.replicas, "r0") is not None
    await until(lambda: _is(presence.num_beats >= 2))


async def test_draining_is_told_at_once(presence: Presence) -> None:
    presence.start()
    await until(presence.record)
    presence.draining = True
    presence.registration.refresh()

    async with asyncio.timeout(0.8):  # less than a heartbeat
        while not (record := await presence.record()) or not record.draining:
            await asyncio.sleep(0.02)


async def test_stopping_leaves_no_key(presence: Presence) -> None:
    presence.start()
    presence.registration.on_kv_events([BlocksStored(None, [A])])
    await until(presence.entries)
    await presence.registration.stop()

    assert await presence.redis.keys("*") == []


async def test_stopping_before_the_start_is_fine(presence: Presence) -> None:
    await presence.registration.stop()

    assert await presence.redis.keys("*") == []


async def test_batches_after_the_snapshot_are_numbered_without_gaps(presence: Presence) -> None:
    presence.registration.on_kv_events([BlocksStored(None, [A])])
    presence.start()
    first = await until(presence.snapshot)
    assert first.hashes == [A]
    presence.registration.on_kv_events([BlocksStored(A, [B, C])])
    await until(lambda: _holds(presence, first.seq + 1))
    presence.registration.on_kv_events([BlocksRemoved([A]), CacheCleared()])
    entries = await until(lambda: _holds(presence, first.seq + 2))

    assert [identifier for identifier, _ in entries] == [
        f"{first.seq + step}-0".encode() for step in range(3)
    ]
    assert [batch.events for _, batch in entries] == [
        [],
        [BlocksStored(A, [B, C])],
        [BlocksRemoved([A]), CacheCleared()],
    ]


async def test_a_wanted_snapshot_is_written_and_the_wish_removed(presence: Presence) -> None:
    presence.start()
    old = await until(presence.snapshot)
    presence.registration.on_kv_events([BlocksStored(None, [A, B]), BlocksRemoved([B])])
    await until(lambda: _holds(presence, old.seq + 1))
    await presence.redis.set(KEYS.snapshot_wanted(presence.incarnation), b"1")

    new = await until(lambda: _newer(presence, old.seq))

    assert new.hashes == [A]
    assert not await presence.redis.exists(KEYS.snapshot_wanted(presence.incarnation))


async def test_a_redis_that_is_killed_and_comes_back_empty_gets_everything_again(
    server: EmbeddedRedis, presence: Presence, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="octavo_runtime.server.registration")
    presence.start()
    presence.registration.on_kv_events([BlocksStored(None, [A])])
    before = await until(presence.entries)
    last_seq = before[-1][1].seq
    server.child.kill()
    presence.registration.on_kv_events([BlocksStored(A, [B])])
    presence.registration.on_kv_events([BlocksRemoved([A])])
    await until(lambda: _is("Redis is away" in caplog.text))
    server.start()

    snapshot = await until(lambda: _newer(presence, last_seq))
    record = await until(presence.record)
    entries = await until(presence.entries)

    assert snapshot.hashes == [B]
    assert record.incarnation == presence.incarnation
    assert await presence.redis.zscore(KEYS.replicas, "r0") is not None
    # Whoever followed the old stream sees a gap, and turns to the snapshot.
    assert entries[0][1].seq > last_seq + 1
    assert snapshot.seq >= entries[0][1].seq
    await until(lambda: _is("Redis is back" in caplog.text))
    assert caplog.text.count("Redis is away") == 1
    assert caplog.text.count("Redis is back") == 1


async def test_a_redis_that_comes_back_unnoticed_gets_a_snapshot_again(presence: Presence) -> None:
    """A batch that is sent before the next heartbeat makes the stream exist, but says not all."""
    presence.start()
    presence.registration.on_kv_events([BlocksStored(None, [A])])
    old = await until(presence.snapshot)
    presence.registration.on_kv_events([BlocksStored(A, [B])])
    await until(lambda: _holds(presence, old.seq + 1))
    await presence.redis.delete(KEYS.snapshot(presence.incarnation))

    snapshot = await until(presence.snapshot)

    assert snapshot.hashes == [A, B]
    assert snapshot.seq > old.seq + 2  # a gap: followers may lack what was lost


async def test_a_flood_of_events_while_redis_hangs_is_not_kept(
    server: EmbeddedRedis, presence: Presence
) -> None:
    presence.start()
    await until(presence.snapshot)
    process = server.child.pid
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    try:
        for number in range(20_000):
            presence.registration.on_kv_events([BlocksStored(None, [number.to_bytes(16)])])
            presence.registration.on_kv_events([BlocksRemoved([number.to_bytes(16)])])
        presence.registration.on_kv_events([BlocksStored(None, [C])])
    finally:
        os.kill(process, signal.SIGCONT)

    async def is_known() -> bool:
        await presence.redis.set(KEYS.snapshot_wanted(presence.incarnation), b"1")
        snapshot = await presence.snapshot()
        return snapshot is not None and snapshot.hashes == [C]

    await until(is_known)


async def test_stopping_without_redis_is_quick(server: EmbeddedRedis, presence: Presence) -> None:
    presence.start()
    await until(presence.record)
    server.child.kill()

    async with asyncio.timeout(1.0):
        await presence.registration.stop()


@pytest.mark.parametrize("url", ["", "localhost", "http://:secret@x", "redis://x:secret/0"])
async def test_a_url_that_cannot_be_one_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://host:port") as caught:
        Registration(url, KEYS, "r0")
    assert "secret" not in str(caught.value)


async def _is(value: bool) -> bool:
    return value


async def _holds(presence: Presence, seq: int) -> list[tuple[bytes, Any]]:
    """The stream's entries once its newest one is `seq`."""
    entries = await presence.entries()
    return entries if entries and entries[-1][1].seq == seq else []


async def _newer(presence: Presence, seq: int) -> KVSnapshot | None:
    snapshot = await presence.snapshot()
    return snapshot if snapshot is not None and snapshot.seq > seq else None
