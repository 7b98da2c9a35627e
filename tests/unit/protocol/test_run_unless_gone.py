"""Work for a client ends when the client leaves, and only then."""

import asyncio
from typing import Any

import pytest

from octavo_protocol.asgi import ClientGoneError, Departure, run_unless_gone


class Client:
    """Its `receive` tells the disconnect when it leaves."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()

    async def receive(self) -> Any:
        await self.has_left.wait()
        return {"type": "http.disconnect"}


async def test_the_result_comes_back_and_nothing_stays_behind() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    client = Client()
    before = asyncio.all_tasks()
    assert await run_unless_gone(client.receive, work()) == 7
    client.has_left.set()  # too late to matter
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_client_that_leaves_ends_the_work() -> None:
    has_ended = False

    async def work() -> None:
        nonlocal has_ended
        try:
            client.has_left.set()
            await asyncio.Event().wait()
        finally:
            has_ended = True

    client = Client()
    with pytest.raises(ClientGoneError):
        await run_unless_gone(client.receive, work())
    assert has_ended
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_departure_that_a_server_tells_of_ends_the_work_without_a_task_that_waits() -> None:
    departure = Departure()

    async def work() -> None:
        assert asyncio.all_tasks() == before
        asyncio.get_running_loop().call_soon(departure.come)
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    with pytest.raises(ClientGoneError):
        await run_unless_gone(Client().receive, work(), departure)
    with pytest.raises(ClientGoneError):  # it came before there was anything to end
        await run_unless_gone(Client().receive, work(), departure)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_departure_after_the_work_matters_to_nobody() -> None:
    async def work() -> int:
        return 7

    departure = Departure()
    assert await run_unless_gone(Client().receive, work(), departure) == 7
    departure.come()
    await asyncio.sleep(0)


async def test_an_error_of_the_work_is_passed_on() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_unless_gone(Client().receive, work())


async def test_a_cancelled_caller_is_no_client_that_left() -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run_unless_gone(Client().receive, work()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
