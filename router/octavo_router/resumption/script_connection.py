"""Scripts on one connection to Redis, several calls in one round trip.

redis-py opens the connection and reads the answers; its pipelines, which do much more, take three
times the processor time.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

Keys = tuple[str, ...]
Args = tuple[str | bytes | int, ...]
_BROKEN = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Call:
    script: str
    keys: Keys
    args: Args


class ScriptConnection:
    """Belongs to one task. timeout_s: of a round trip."""

    def __init__(self, url: str, timeout_s: float) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            url, socket_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._connection = pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s
        self._digests: dict[str, str] = {}

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    async def run(self, calls: Sequence[Call]) -> list[Any]:
        """What each call returned, or the error that Redis answered. Scripts must allow for being
        run twice: a connection may have broken while it was idle, or after it had sent a call.

        Raises `RedisError` or OSError when Redis is away.
        """
        try:
            results = await self._exchange(calls)
        except _BROKEN:
            results = await self._exchange(calls)
        unknown = [
            index
            for index, result in enumerate(results)
            if isinstance(result, redis.exceptions.NoScriptError)
        ]
        if unknown:
            missing = [calls[index] for index in unknown]
            await self._send([(b"SCRIPT", b"LOAD", call.script) for call in missing])
            for index, result in zip(unknown, await self._exchange(missing), strict=True):
                results[index] = result
        return results

    async def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        return await self._send(
            [
                (b"EVALSHA", self._digest(call.script), len(call.keys), *call.keys, *call.args)
                for call in calls
            ]
        )

    async def _send(self, commands: Sequence[Args]) -> list[Any]:
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()
                await connection.send_packed_command(map(packed, commands), check_health=False)
                return [await self._answer() for _ in commands]
        except BaseException:
            # Answers that are still to come would be taken for those of later commands.
            with contextlib.suppress(*_BROKEN):
                await connection.disconnect(nowait=True)
            raise

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except redis.exceptions.ResponseError as error:
            return error

    def _digest(self, script: str) -> str:
        if script not in self._digests:
            digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
            self._digests[script] = digest
        return self._digests[script]


def packed(arguments: Iterable[str | bytes | int]) -> bytes:
    """A command as Redis reads it."""
    raw = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
    return b"*%d\r\n" % len(raw) + b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in raw])
