"""Redis' notices that a stream has grown, on one connection for all streams that are waited for."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import redis.asyncio
import redis.exceptions

from octavo_protocol.tasks import stop_tasks

_TIMEOUT_S = 1.0
_AGAIN_S = 0.5
_IDLE = "octavo:journal_notices"  # subscribed to always: redis-py listens to nothing else otherwise


class Notices:
    """An async context manager. Notices may be lost with the connection, never for good: whoever
    waits looks by himself from time to time.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=_TIMEOUT_S)
        self._waiting: defaultdict[bytes, set[asyncio.Event]] = defaultdict(set)
        self._wanted: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Notices":
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            await stop_tasks((self._task,))
        await self._client.aclose()

    @contextmanager
    def of(self, channel: str) -> Iterator[asyncio.Event]:
        """An event that is set by every notice, and once the channel is listened to."""
        event, key = asyncio.Event(), channel.encode()
        if not self._waiting[key]:
            self._wanted.put_nowait(key)
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]
                self._wanted.put_nowait(key)

    async def _work(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(_IDLE, *self._waiting)
                    changing = asyncio.create_task(self._change(pubsub))
                    try:
                        async for message in pubsub.listen():
                            self._tell(message["channel"])
                    finally:
                        await stop_tasks((changing,))
            except (redis.exceptions.RedisError, OSError):
                await asyncio.sleep(_AGAIN_S)

    async def _change(self, pubsub: "redis.asyncio.client.PubSub") -> None:
        """Listens to what is waited for, and no longer to the rest."""
        while True:
            key = await self._wanted.get()
            try:
                if key in self._waiting:
                    await pubsub.subscribe(key)
                else:
                    await pubsub.unsubscribe(key)
            except (redis.exceptions.RedisError, OSError):
                return  # the listener meets the same and begins anew

    def _tell(self, channel: bytes) -> None:
        for event in self._waiting.get(channel, ()):
            event.set()
