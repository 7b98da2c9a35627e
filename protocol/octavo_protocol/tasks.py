"""Stopping background tasks for certain."""

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.05


async def stop_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels `tasks` and returns when all have ended; how they ended is not told.

    A cancellation is repeated until it works: redis-py 8.1 swallows one that arrives while a
    connection reads, so that a loop around it goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        await asyncio.gather(*done, return_exceptions=True)
