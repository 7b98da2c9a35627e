"""Which line is sent when."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_router.batches.dispatch import BusyError, Dispatcher, prefix_of


async def test_deadlines_first_then_prefixes_then_arrival() -> None:
    room = 0
    dispatcher = Dispatcher(lambda model, num_open: room)
    order: list[str] = []

    async def work(name: str) -> str:
        order.append(name)
        return name

    asked = [(2, "b", "1"), (2, "a", "2"), (1, "z", "3"), (2, "b", "4"), (2, "a", "5")]
    runs = [
        asyncio.create_task(dispatcher.run("m", deadline, prefix, partial(work, name)))
        for deadline, prefix, name in asked
    ]
    await asyncio.sleep(0)
    assert dispatcher.num_waiting == 5
    room = 1
    dispatcher.fill_all()
    assert await asyncio.gather(*runs) == ["1", "2", "3", "4", "5"]
    assert order == ["3", "2", "5", "1", "4"]
    assert dispatcher.num_waiting == 0


async def test_a_line_that_meets_a_limit_gives_its_place_to_those_of_others() -> None:
    """And its owner's other lines wait with it, so that nobody asks in vain again and again."""
    dispatcher = Dispatcher(lambda model, num_open: 1)
    asked: list[str] = []
    is_limited = True

    async def work(name: str) -> str:
        asked.append(name)
        if is_limited and name.startswith("a"):
            raise BusyError
        return name

    runs = [
        asyncio.create_task(dispatcher.run("m", 0, "", partial(work, name), owner=name[0]))
        for name in ("a1", "a2", "b1", "b2")
    ]
    assert await asyncio.gather(*runs[2:]) == ["b1", "b2"]
    assert asked == ["a1", "b1", "b2"]
    assert dispatcher.num_waiting == 2
    is_limited = False
    assert await asyncio.gather(*runs[:2]) == ["a1", "a2"]
    assert asked == ["a1", "b1", "b2", "a1", "a2"]
    assert dispatcher.num_waiting == 0


async def test_an_owner_with_a_limit_has_as_many_lines_under_way_as_it_may() -> None:
    """Hardly any line asks in vain, and none waits for a pause."""
    dispatcher = Dispatcher(lambda model, num_open: 9)
    num_open = num_asked = most_open = 0

    async def work() -> None:
        nonlocal num_open, num_asked, most_open
        num_asked += 1
        if num_open == 4:
            raise BusyError(60)
        num_open += 1
        most_open = max(most_open, num_open)
        await asyncio.sleep(0)
        num_open -= 1

    runs = [dispatcher.run("m", 0, "", work) for _ in range(100)]
    await asyncio.wait_for(asyncio.gather(*runs), 4)
    assert most_open == 4
    assert num_asked <= 100 + 5 + 100 / 4
    assert dispatcher.num_waiting == 0


async def test_the_first_line_of_a_long_beginning_goes_ahead_alone() -> None:
    dispatcher = Dispatcher(lambda model, num_open: 9)
    begun: list[str] = []
    gates = {name: asyncio.Event() for name in ("a1", "a2", "a3", "b1", "c1", "c2")}

    async def work(name: str) -> str:
        begun.append(name)
        await gates[name].wait()
        return name

    prefixes = {"a": "a" * 512, "b": "b" * 512, "c": "short"}
    runs = [
        asyncio.create_task(dispatcher.run("m", 0, prefixes[name[0]], partial(work, name)))
        for name in gates
    ]
    await asyncio.sleep(0.01)
    assert begun == ["a1", "b1", "c1", "c2"]
    assert dispatcher.num_waiting == 2
    gates["a1"].set()
    assert await runs[0] == "a1"
    await asyncio.sleep(0.01)
    assert begun[4:] == ["a2", "a3"]
    runs.append(asyncio.create_task(dispatcher.run("m", 0, prefixes["a"], partial(work, "a1"))))
    await asyncio.sleep(0.01)
    assert begun[6:] == ["a1"]
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*runs)
    assert dispatcher.num_waiting == 0


@pytest.mark.parametrize("end", ["time", "failure", "cancellation"])
async def test_a_head_start_ends_whatever_becomes_of_the_line(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("octavo_router.batches.dispatch._HEAD_START_S", 0 if end == "time" else 60)
    dispatcher = Dispatcher(lambda model, num_open: 9)

    async def first() -> None:
        if end == "failure":
            await asyncio.sleep(0)
            raise RuntimeError
        await asyncio.sleep(0 if end == "time" else 60)

    ahead = asyncio.create_task(dispatcher.run("m", 0, "x" * 512, first))
    await asyncio.sleep(0)
    behind = asyncio.create_task(dispatcher.run("m", 0, "x" * 512, partial(asyncio.sleep, 0, "ok")))
    await asyncio.sleep(0)
    if end == "cancellation":
        ahead.cancel()
    assert await asyncio.wait_for(behind, 30) == "ok"
    await asyncio.wait([ahead])
    assert dispatcher.num_waiting == 0


async def test_pauses_grow_up_to_five_seconds_and_end_with_a_success() -> None:
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(lambda model, num_open: 1)
    pauses: list[float] = []
    told = iter([0.0, 0.0, 2.0, 9.0, None, 0.0, None])

    async def work() -> str:
        if (pause_s := next(told)) is None:
            return "done"
        raise BusyError(pause_s)

    def later(delay: float, *call: Any) -> None:
        pauses.append(round(delay, 2))
        loop.call_soon(_skip, dispatcher, *call)

    with patch.object(loop, "call_later", later):
        assert await dispatcher.run("m", 0, "", work) == "done"
        assert pauses == [0.25, 0.5, 2.0, 5.0]
        assert await dispatcher.run("m", 0, "", work) == "done"
        assert pauses == [0.25, 0.5, 2.0, 5.0, 0.25]


def _skip(dispatcher: Dispatcher, fill: Callable[[str], None], model: str) -> None:
    """Ends the pause of the model's lanes."""
    for lane in dispatcher._models[model].lanes.values():
        lane.paused_until = 0.0
    fill(model)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.booleans()), max_size=30))
def test_room_is_kept_whatever_is_cancelled(steps: list[tuple[str, bool, bool]]) -> None:
    asyncio.run(_check_room(steps))


async def _check_room(steps: list[tuple[str, bool, bool]]) -> None:
    num_open = {"a": 0, "b": 0}
    dispatcher = Dispatcher(lambda model, _: 2)

    async def work(model: str, fails: bool) -> None:
        num_open[model] += 1
        assert num_open[model] <= 2
        try:
            await asyncio.sleep(0)
            if fails:
                raise RuntimeError
        finally:
            num_open[model] -= 1

    runs = []
    for i, (model, fails, is_cancelled) in enumerate(steps):
        prefix = "xyz"[i % 3] * 512 if i % 4 else ""
        run = asyncio.create_task(dispatcher.run(model, 0, prefix, partial(work, model, fails)))
        runs.append(run)
        await asyncio.sleep(0)
        if is_cancelled:
            runs[len(runs) // 2].cancel()
    await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 30)
    assert dispatcher.num_waiting == 0
    assert await dispatcher.run("a", 0, "", lambda: asyncio.sleep(0, "free")) == "free"


def test_requests_that_begin_alike_have_one_prefix() -> None:
    system = {"role": "system", "content": "x" * 600}
    asks = [{"messages": [system, {"role": "user", "content": text}]} for text in "ab"]
    assert prefix_of(asks[0]) == prefix_of(asks[1])
    assert prefix_of({"prompt": "hello"}) == "hello"
    assert prefix_of({"prompt": [1, 2]}) == "1\n2"
    assert len(prefix_of({"prompt": [7] * 1000})) > 500
    assert prefix_of({"input": ["a", "b"]}) == "a\nb"
    assert prefix_of({}) == ""
