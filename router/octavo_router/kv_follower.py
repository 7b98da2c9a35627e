"""Reads the replicas' KV event streams and snapshots of all deployments from Redis.

One task and one connection, however many there are. A round reads every stream in one command and
pauses in proportion to their number, so that following costs a bounded share of a core; what was
routed meanwhile is held in the index by speculation.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, cast

import redis.asyncio
import redis.exceptions

from octavo_router.deployment import Deployment

_BLOCK_MS = 200
_COUNT = 200
_PAUSE_S = 0.0002  # after each round, per stream
_WANTED_TTL_S = 10
_SNAPSHOTS = 64  # read in one round; each may be a megabyte


class KVFollower:
    """Applies what the replicas publish. deployments: those to follow, asked before each round."""

    def __init__(self, deployments: Callable[[], Iterable[Deployment]]) -> None:
        self._deployments = deployments
        self._next_snapshot = 0

    async def follow(self, client: "redis.asyncio.Redis") -> None:
        """Runs until cancelled; goes on after Redis was away."""
        while True:
            try:
                await self.poll(client)
            except (redis.exceptions.RedisError, OSError):  # discovery tells of it
                await asyncio.sleep(_BLOCK_MS / 1000)

    async def poll(self, client: "redis.asyncio.Redis") -> None:
        """One round: snapshots that are waited for, then new batches of all others."""
        deployments = list(self._deployments())
        for deployment in deployments:
            deployment.follow_caches()
        is_waiting = await self._read_snapshots(client, deployments)
        sources: dict[bytes, tuple[Deployment, str]] = {}
        streams: dict[Any, Any] = {}
        for deployment in deployments:
            for incarnation, seq in deployment.blocks.positions().items():
                key = deployment.keys.events(incarnation)
                sources[key.encode()] = deployment, incarnation
                streams[key] = f"{seq}-0"
        if not streams:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        answer = await client.xread(streams, count=_COUNT, block=None if is_waiting else _BLOCK_MS)
        for stream, entries in _pairs(answer):
            deployment, incarnation = sources[stream]
            for _, fields in entries:
                deployment.blocks.take_batch(incarnation, fields)
        is_idle = is_waiting and not answer
        await asyncio.sleep(_BLOCK_MS / 1000 if is_idle else _PAUSE_S * len(streams))

    async def _read_snapshots(
        self, client: "redis.asyncio.Redis", deployments: list[Deployment]
    ) -> bool:
        """Reads some of those that are waited for, each in its turn. True: others are missing."""
        waiting = [(each, name) for each in deployments for name in each.blocks.waiting()]
        if not waiting:
            return False
        start = self._next_snapshot % len(waiting)
        turn = list(islice(waiting[start:] + waiting[:start], _SNAPSHOTS))
        self._next_snapshot = start + len(turn)
        keys = [deployment.keys.snapshot(name) for deployment, name in turn]
        values = cast(list[bytes | None], await client.mget(keys))
        missing = [
            (deployment, name)
            for (deployment, name), raw in zip(turn, values, strict=True)
            if not deployment.blocks.take_snapshot(name, raw)
        ]
        async with client.pipeline(transaction=False) as pipe:
            for deployment, name in missing:
                pipe.set(deployment.keys.snapshot_wanted(name), b"1", ex=_WANTED_TTL_S, nx=True)
            await pipe.execute()
        return bool(missing) or len(turn) < len(waiting)


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
