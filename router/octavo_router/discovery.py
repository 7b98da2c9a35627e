"""Follows the replicas' records, in Redis or, without one, at fixed addresses.

Redis away: the last known replicas stay. So they do for one time to live when Redis answers with
no replica at all: a Redis that was restarted empty looks like that until the replicas' next
heartbeats, and a replica that is really gone refuses connections, which the proxy notices.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import aiohttp
import msgspec
import redis.asyncio
import redis.exceptions

from octavo_protocol.keys import RECORD_TTL_S, Keys
from octavo_protocol.records import ReplicaRecord, decode_record
from octavo_router.load_tracker import LoadTracker
from octavo_router.replicas import ReplicaSet

logger = logging.getLogger(__name__)

POLL_S = 0.5
_FORGET_S = 3600  # ids in the sorted set without a heartbeat for so long are passed over


class Discovery:
    """Keeps `replicas` true and forgets the loads of those that are gone.

    is_degraded: Redis does not answer.
    """

    def __init__(
        self,
        replicas: ReplicaSet,
        loads: LoadTracker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._loads = loads
        self._clock = clock
        self._empty_since: float | None = None
        self._seen: dict[str, bytes] = {}
        self.is_degraded = False

    async def follow_redis(self, client: "redis.asyncio.Redis", keys: Keys) -> None:
        """Runs until cancelled."""
        while True:
            try:
                self.take(await read_records(client, keys))
                self._note(degraded=False)
            except (redis.exceptions.RedisError, OSError) as error:
                self._note(degraded=True, error=error)
            await asyncio.sleep(POLL_S)

    async def follow_urls(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        """Replicas at fixed addresses, known by what they answer. Runs until cancelled."""
        while True:
            records = await asyncio.gather(*(_probe(session, url) for url in urls))
            self.take(
                {record.replica_id: msgspec.msgpack.encode(record) for record in records if record}
            )
            await asyncio.sleep(POLL_S)

    def take(self, raw: dict[str, bytes]) -> None:
        """Takes in all records there are, by replica id."""
        if not raw and len(self._replicas) > 0:
            now = self._clock()
            if self._empty_since is None:
                self._empty_since = now
            if now - self._empty_since < RECORD_TTL_S:
                return
        else:
            self._empty_since = None
        records = []
        for replica_id, value in raw.items():
            try:
                record = decode_record(value)
            except msgspec.DecodeError as error:
                logger.warning("the record of %s cannot be read: %s", replica_id, error)
                continue
            records.append(record)
            if self._seen.get(replica_id) != value:
                self._loads.record(
                    record.incarnation,
                    waiting_tokens=record.waiting_tokens,
                    running=record.running,
                )
        self._seen = raw
        for incarnation in self._replicas.replace(records):
            self._loads.drop(incarnation)

    def _note(self, *, degraded: bool, error: Exception | None = None) -> None:
        if degraded and not self.is_degraded:
            logger.warning("Redis is away, routing goes on with what is known: %s", error)
        elif self.is_degraded and not degraded:
            logger.info("Redis is back")
        self.is_degraded = degraded


async def read_records(client: "redis.asyncio.Redis", keys: Keys) -> dict[str, bytes]:
    """Every live record by replica id."""
    now = time.time()
    ids = cast(list[bytes], await client.zrangebyscore(keys.replicas, now - _FORGET_S, "+inf"))
    if not ids:
        return {}
    names = [replica_id.decode(errors="replace") for replica_id in ids]
    values = cast(list[Any], await client.mget([keys.replica(name) for name in names]))
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


async def _probe(session: aiohttp.ClientSession, url: str) -> ReplicaRecord | None:
    try:
        async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(2)) as response:
            models = (await response.json())["data"]
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
        return None
    names = [model["id"] for model in models]
    return ReplicaRecord(
        replica_id=url,
        incarnation=url,
        url=url,
        model=names[0],
        served_names=names,
        cache_model="",
        block_size=0,  # unknown: no prediction, routing by load
        num_blocks=0,
        max_model_len=models[0].get("max_model_len") or 0,
    )
