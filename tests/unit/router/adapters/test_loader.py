"""Loads that end after the adapter's source has changed."""

import asyncio
from typing import Any, cast

from tests.fakes.fake_presence import new_record

from octavo_protocol.records import AdapterSource
from octavo_router.adapters.holdings import AdapterHoldings
from octavo_router.adapters.loader import AdapterLoader
from octavo_router.metrics import RouterMetrics
from octavo_router.upstream import UpstreamClient

SQL = AdapterSource("sql", "hf://org/sql", on_demand=True)
REPAIRED = AdapterSource("sql", "hf://org/repaired", on_demand=True)


class Refusing:
    """A client whose replica refuses all loads, once it may answer."""

    status = 400

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()

    async def send(self, *_: Any) -> "Refusing":
        await self.may_answer.wait()
        return self

    async def read(self) -> bytes:
        return b'{"error": {"message": "rank 64 is too much"}}'

    def __enter__(self) -> "Refusing":
        return self

    def __exit__(self, *_: object) -> None:
        pass


async def test_a_refusal_of_a_former_source_is_not_held_against_the_new_one() -> None:
    record, adapters, client = new_record("a", max_adapters=2), AdapterHoldings(), Refusing()
    adapters.take_records([record])
    loader = AdapterLoader(cast(UpstreamClient, client), RouterMetrics(), wait_s=60)
    outcomes = []
    for later in ([REPAIRED], [], [SQL]):
        adapters.take_sources([SQL])
        load = loader.start(adapters, record, SQL)
        await asyncio.sleep(0)
        adapters.take_sources(later)
        client.may_answer.set()
        assert not await load
        client.may_answer.clear()
        outcomes.append(adapters.error("sql"))
    assert outcomes[:2] == [None, None]
    assert "rank 64 is too much" in str(outcomes[2])
