"""Keeps this replica known in Redis: a record every second, KV events as they come.

Serving never waits for Redis. Away, it is tried again with growing delays; back, the record and a
snapshot are written anew, whatever it still knows.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

import redis.asyncio
import redis.asyncio.retry
import redis.backoff
import redis.exceptions

from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import HEARTBEAT_S, RECORD_TTL_S, Keys
from octavo_protocol.records import KVEvent, ReplicaRecord, encode
from octavo_protocol.tasks import stop_tasks
from octavo_runtime.server.kv_publisher import KVPublisher

logger = logging.getLogger(__name__)

_MIN_DELAY_S = 0.1
_MAX_DELAY_S = 2.0
_TIMEOUT_S = 2.0


class Registration:
    """One replica's presence in Redis.

    The incarnation is random per start. Raises `ConfigError` for a URL that cannot be one.
    """

    def __init__(self, redis_url: str, keys: Keys, replica_id: str) -> None:
        self.incarnation = secrets.token_hex(8)
        # No retries inside a call: this class has its own, and a stop must not wait for them.
        no_retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)
        try:
            self._client = redis.asyncio.Redis.from_url(
                redis_url,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=no_retry,
            )
        except ValueError as error:  # its text may repeat parts of the URL, such as the password
            raise ConfigError(
                "the Redis URL cannot be used; write redis://host:port/0 or unix:///path"
            ) from error
        self._keys = keys
        self._replica_id = replica_id
        self._publisher = KVPublisher(keys, self.incarnation)
        self._wake = asyncio.Event()
        self._next_beat = 0.0
        self._is_away = False
        self._task: asyncio.Task[None] | None = None

    def start(
        self, record: Callable[[str], ReplicaRecord], on_registered: Callable[[], None]
    ) -> None:
        """Registers and stays so until `stop`.

        record: makes the current record for an incarnation. on_registered: called whenever one is
        written.
        """
        self._task = asyncio.create_task(self._run(record, on_registered))
        self._task.add_done_callback(_log_failure)

    def on_kv_events(self, events: list[KVEvent]) -> None:
        """Takes the engine's events; they are sent at once."""
        self._publisher.add(events)
        self._wake.set()

    def refresh(self) -> None:
        """Writes the record now instead of at the next heartbeat."""
        self._next_beat = 0.0
        self._wake.set()

    async def stop(self) -> None:
        """Takes the replica out of Redis, if it ever was there, and closes the connection."""
        if self._task is not None:
            await stop_tasks([self._task])
            with suppress(redis.exceptions.RedisError, OSError):
                await self._client.delete(self._keys.replica(self._replica_id))
                await self._client.zrem(self._keys.replicas, self._replica_id)
                await self._publisher.delete(self._client)
        await self._client.aclose()

    async def _run(
        self, record: Callable[[str], ReplicaRecord], on_registered: Callable[[], None]
    ) -> None:
        delay = _MIN_DELAY_S
        while True:
            try:
                if time.monotonic() >= self._next_beat:
                    self._next_beat = time.monotonic() + HEARTBEAT_S
                    await self._beat(record(self.incarnation))
                    on_registered()
                await self._publisher.flush(self._client)
            except (redis.exceptions.RedisError, OSError) as error:
                self._note_away(error)
                self._next_beat = 0.0
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MAX_DELAY_S)
                continue
            self._note_back()
            delay = _MIN_DELAY_S
            with suppress(TimeoutError):
                wait_s = max(0.0, self._next_beat - time.monotonic())
                await asyncio.wait_for(self._wake.wait(), wait_s)
            self._wake.clear()

    async def _beat(self, record: ReplicaRecord) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._keys.replica(self._replica_id), encode(record), ex=RECORD_TTL_S)
            pipe.zadd(self._keys.replicas, {self._replica_id: time.time()})
            await pipe.execute()
        await self._publisher.answer_wanted(self._client)

    def _note_away(self, error: Exception) -> None:
        self._publisher.lost()
        if not self._is_away:
            logger.warning("Redis is away, serving goes on: %s", error)
            self._is_away = True

    def _note_back(self) -> None:
        if self._is_away:
            logger.info("Redis is back")
            self._is_away = False


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("this replica is no longer registered", exc_info=error)
