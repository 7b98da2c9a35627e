"""The journal in Redis: one connection for all commands, another one for notices of changes.

What is asked of it while a round trip is under way goes together in the next one, all appends in
one call, so that many streams cost little more than one. Nobody but its own task touches a
connection: a caller that is cancelled breaks nothing.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.exceptions

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
from octavo_router.resumption.script_connection import Args, Call, Keys, ScriptConnection

_TIMEOUT_S = 1.0
# Appends wait after each round trip, the longer the more there were: many share the next one then.
_LEAST_PAUSE_S, _PAUSE_PER_APPEND_S, _LONGEST_PAUSE_S = 0.004, 0.001, 0.03
_READ_BATCHES = 256
_MOST_AT_ONCE = 256
_encoder = msgspec.msgpack.Encoder()
_batch_decoder = msgspec.msgpack.Decoder(Batch)
_head_decoder = msgspec.msgpack.Decoder(AnswerHead)
_KEPT = {each.value.encode(): each for each in Kept}


@dataclass(slots=True)
class _Command:
    """keys, args: of the script."""

    script: str
    keys: Keys
    args: Args
    answer: asyncio.Future[Any]


class RedisJournal:
    """Implements `Journal`. An async context manager; belongs to one event loop."""

    def __init__(self, url: str, limits: JournalLimits) -> None:
        self._limits = limits
        self._bounds = (
            _ms(limits.lease_s),
            _ms(limits.ttl_s),
            limits.max_stream_bytes,
            limits.max_total_bytes,
        )
        self._scripts = ScriptConnection(url, _TIMEOUT_S)
        self._notices = Notices(url)
        self._waiting: list[_Command] = []
        self._has_waiting = asyncio.Event()
        self._has_urgent = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "RedisJournal":
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._work())]
        await self._notices.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._notices.__aexit__()
        await stop_tasks(self._tasks)
        self._fail(self._waiting, "the router is stopping")
        await self._scripts.close()

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
        arguments = (
            name.id,
            token,
            batch.last,
            _encoder.encode(batch) if batch.events else b"",
            batch.num_bytes,
            _encoder.encode(head) if head is not None else b"",
            int(head is not None and head.trace is not None),
            int(is_end),
        )
        answer = await self._call(APPEND, name, arguments, is_urgent=head is not None)
        kept, unread_ms = answer.split()
        return Appended(_KEPT[kept], float(unread_ms) / 1000)

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

    async def _call(
        self, script: str, name: StreamName, args: Args, *, is_urgent: bool = True
    ) -> Any:
        keys = name.keys
        of_stream = keys.journal(name.id), keys.journal_events(name.id)
        assert self._loop is not None
        answer: asyncio.Future[Any] = self._loop.create_future()
        command = _Command(script, (*of_stream, keys.journals, keys.journal_bytes), args, answer)
        self._waiting.append(command)
        self._has_waiting.set()
        if is_urgent:
            self._has_urgent.set()
        return await answer

    async def _work(self) -> None:
        while True:
            await self._has_waiting.wait()
            commands = self._waiting[:_MOST_AT_ONCE]
            del self._waiting[:_MOST_AT_ONCE]
            if not self._waiting:
                self._has_waiting.clear()
                self._has_urgent.clear()
            try:
                await self._run(commands)
            except (redis.exceptions.RedisError, OSError) as error:
                self._fail(commands, f"Redis is away: {error}")
            finally:
                self._fail(commands, "the router is stopping")
            await self._pause(sum(command.script == APPEND for command in commands))

    async def _pause(self, num_appends: int) -> None:
        """Lets appends gather, until something comes that should not wait."""
        pause_s = _LEAST_PAUSE_S + _PAUSE_PER_APPEND_S * num_appends
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(pause_s, _LONGEST_PAUSE_S)):
                await self._has_urgent.wait()

    async def _run(self, commands: Sequence[_Command]) -> None:
        appends = [command for command in commands if command.script == APPEND]
        others = [command for command in commands if command.script != APPEND]
        calls = [Call(each.script, each.keys, each.args) for each in others]
        if appends:
            keys = tuple(key for each in appends for key in each.keys)
            args = itertools.chain(self._bounds, *(each.args for each in appends))
            calls.append(Call(APPEND, keys, tuple(args)))
        results = await self._scripts.run(calls)
        if appends:
            kept = results.pop()
            each_kept = kept.split(b",") if isinstance(kept, bytes) else [kept] * len(appends)
            for command, result in zip(appends, each_kept, strict=True):
                _settle(command, result)
        for command, result in zip(others, results, strict=True):
            _settle(command, result)

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
