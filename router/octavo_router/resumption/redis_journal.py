"""The journal in Redis: one connection for all commands, another one for notices of changes.

What is asked of it while a round trip is under way goes together in the next one, so that many
streams at once cost few round trips. Nobody but its own task touches a connection: a caller that is
cancelled breaks nothing.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from octavo_protocol.tasks import stop_tasks
from octavo_router.resumption.events import AnswerHead, Batch
from octavo_router.resumption.journal import (
    Appended,
    Claim,
    JournalAwayError,
    JournalLimits,
    Kept,
    Reading,
    Standing,
    StreamName,
)
from octavo_router.resumption.journal_scripts import APPEND, CLAIM, DROP, READ, RELEASE
from octavo_router.resumption.notices import Notices

_TIMEOUT_S = 1.0
_PAUSE_S = 0.005  # after each round trip: many streams share one, which halves what each costs
_READ_BATCHES = 256
_NUM_KEYS = 4
_MOST_AT_ONCE = 256
_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_head_decoder = msgspec.msgpack.Decoder(AnswerHead)
_SHA = {
    script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    for script in (CLAIM, APPEND, READ, RELEASE, DROP)
}


@dataclass(frozen=True, slots=True)
class _Command:
    script: str
    args: tuple[Any, ...]  # keys first
    answer: asyncio.Future[Any]


class RedisJournal:
    """Implements `Journal`. An async context manager; belongs to one event loop."""

    def __init__(self, url: str, limits: JournalLimits) -> None:
        self._limits = limits
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # a connection that broke while idle
        )
        self._notices = Notices(url)
        self._waiting: list[_Command] = []
        self._has_waiting = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "RedisJournal":
        self._tasks = [asyncio.create_task(self._work())]
        await self._notices.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._notices.__aexit__()
        await stop_tasks(self._tasks)
        self._fail(self._waiting, "the router is stopping")
        await self._client.aclose()

    async def claim(
        self, name: StreamName, token: str, fingerprint: str, *, must_exist: bool
    ) -> Claim:
        limits = self._limits
        times = _ms(limits.lease_s), _ms(limits.ttl_s)
        standing, last = await self._call(
            CLAIM,
            name,
            (name.id, token, fingerprint, *times, limits.max_total_bytes, int(must_exist)),
        )
        return Claim(Standing(standing.decode()), last)

    async def append(
        self,
        name: StreamName,
        token: str,
        batch: Batch,
        head: AnswerHead | None = None,
        *,
        is_end: bool = False,
    ) -> Appended:
        limits = self._limits
        arguments = (
            name.id,
            token,
            batch.last,
            _encoder.encode(batch) if batch.events else b"",
            batch.num_bytes,
            _encoder.encode(head) if head is not None else b"",
            int(head is not None and head.trace is not None),
            int(is_end),
            _ms(limits.lease_s),
            _ms(limits.ttl_s),
            limits.max_stream_bytes,
            limits.max_total_bytes,
        )
        kept, unread_ms = await self._call(APPEND, name, arguments)
        return Appended(Kept(kept.decode()), unread_ms / 1000)

    async def read(self, name: StreamName, after: int) -> Reading:
        state, is_leased, head, batches = await self._call(READ, name, (after, _READ_BATCHES))
        return Reading(
            is_ended=state == b"ended",
            is_running=bool(is_leased) and state == b"",
            head=_head_decoder.decode(head) if head else None,
            batches=tuple(map(_batch_decoder.decode, batches)),
        )

    async def release(self, name: StreamName, token: str) -> None:
        await self._call(RELEASE, name, (token,))

    async def drop(self, name: StreamName, token: str) -> None:
        await self._call(DROP, name, (token, name.id))

    @asynccontextmanager
    async def watch(self, name: StreamName) -> AsyncIterator[asyncio.Event]:
        with self._notices.of(name.keys.journal(name.id)) as event:
            yield event

    async def _call(self, script: str, name: StreamName, arguments: Sequence[Any]) -> Any:
        keys = name.keys
        of_stream = keys.journal(name.id), keys.journal_events(name.id)
        args = (*of_stream, keys.journals, keys.journal_bytes, *arguments)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Command(script, args, answer))
        self._has_waiting.set()
        return await answer

    async def _work(self) -> None:
        while True:
            await self._has_waiting.wait()
            commands = self._waiting[:_MOST_AT_ONCE]
            del self._waiting[:_MOST_AT_ONCE]
            if not self._waiting:
                self._has_waiting.clear()
            try:
                await self._run(commands)
            except (redis.exceptions.RedisError, OSError) as error:
                self._fail(commands, f"Redis is away: {error}")
            finally:
                self._fail(commands, "the router is stopping")
            await asyncio.sleep(_PAUSE_S)

    async def _run(self, commands: Sequence[_Command]) -> None:
        unknown = []
        for command, result in zip(commands, await self._send(commands), strict=True):
            if isinstance(result, redis.exceptions.NoScriptError):
                unknown.append(command)
            else:
                _settle(command, result)
        if unknown:
            for script in _SHA:
                await self._client.script_load(script)
            for command, result in zip(unknown, await self._send(unknown), strict=True):
                _settle(command, result)

    async def _send(self, commands: Sequence[_Command]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.evalsha(_SHA[command.script], _NUM_KEYS, *command.args)
            results: list[Any] = await pipe.execute(raise_on_error=False)
            return results

    def _fail(self, commands: Sequence[_Command], why: str) -> None:
        for command in commands:
            if not command.answer.done():
                command.answer.set_exception(JournalAwayError(why))


def _settle(command: _Command, result: Any) -> None:
    if command.answer.done():  # its caller has left
        return
    if isinstance(result, Exception):
        command.answer.set_exception(JournalAwayError(f"Redis refused: {result}"))
    else:
        command.answer.set_result(result)


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
