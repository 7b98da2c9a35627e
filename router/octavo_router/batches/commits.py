"""Results on their way to Redis: those that come while it is busy go together."""

import asyncio
from functools import partial

from octavo_protocol.tasks import stop_tasks
from octavo_router.batches.patience import patiently
from octavo_router.batches.records import LineResult
from octavo_router.batches.store import BatchStore

_MOST = 64


class Commits:
    """Belongs to one event loop. One write is under way at a time."""

    def __init__(self, store: BatchStore) -> None:
        self._store = store
        self._waiting: list[tuple[LineResult, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def add(self, result: LineResult) -> None:
        """Returns when Redis has the result; waits for as long as Redis is away."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((result, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await kept

    async def close(self) -> None:
        """What is not kept by now is lost."""
        if self._writing is not None:
            await stop_tasks([self._writing])

    async def _write(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            await patiently(partial(self._store.commit, [result for result, _ in taken]))
            for _, kept in taken:
                if not kept.done():
                    kept.set_result(None)
