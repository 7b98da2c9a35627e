"""Results that come while Redis is busy go there together, and none is told kept before it is."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from unittest.mock import patch

import redis.exceptions

from octavo_router.batches.commits import Commits
from octavo_router.batches.records import LineResult, Result
from octavo_router.batches.store import BatchStore


class _Store:
    """gate: writes wait for it. failures: of the next writes."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.failures: list[Exception] = []
        self.written: list[list[int]] = []

    async def commit(self, results: Sequence[LineResult]) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        self.written.append([each.place for each in results])


def _result(place: int) -> LineResult:
    return LineResult("batch", 0, place, Result(False, b"line"))


async def test_results_that_come_during_a_write_go_together_in_the_next() -> None:
    store = _Store()
    commits = Commits(cast(BatchStore, store))
    adding = [asyncio.create_task(commits.add(_result(0)))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    adding += [asyncio.create_task(commits.add(_result(place))) for place in range(1, 70)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in adding)
    store.gate.set()
    await asyncio.gather(*adding)
    assert store.written == [[0], [*range(1, 65)], [*range(65, 70)]]
    await commits.add(_result(70))
    assert store.written[3:] == [[70]]


async def test_a_write_that_fails_is_repeated() -> None:
    store = _Store()
    store.gate.set()
    store.failures = [OSError(), redis.exceptions.ConnectionError()]
    commits = Commits(cast(BatchStore, store))
    with patch("octavo_router.batches.patience._PAUSE_S", 0):
        await commits.add(_result(0))
    assert store.written == [[0]]


async def test_a_closed_writer_writes_nothing_more() -> None:
    store = _Store()
    commits = Commits(cast(BatchStore, store))
    adding: asyncio.Task[Any] = asyncio.create_task(commits.add(_result(0)))
    await asyncio.sleep(0)
    await commits.close()
    store.gate.set()
    await asyncio.sleep(0)
    assert (store.written, adding.done()) == ([], False)
    adding.cancel()
