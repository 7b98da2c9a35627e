"""Which line is sent when."""

import asyncio
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from octavo_router.batches.dispatch import Dispatcher, prefix_of


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
    for model, fails, is_cancelled in steps:
        run = asyncio.create_task(dispatcher.run(model, 0, "", partial(work, model, fails)))
        runs.append(run)
        await asyncio.sleep(0)
        if is_cancelled:
            runs[len(runs) // 2].cancel()
    await asyncio.wait_for(asyncio.gather(*runs, return_exceptions=True), 5)
    assert dispatcher.num_waiting == 0
    assert await dispatcher.run("a", 0, "", lambda: asyncio.sleep(0, "free")) == "free"


def test_requests_that_begin_alike_have_one_prefix() -> None:
    system = {"role": "system", "content": "x" * 600}
    asks = [{"messages": [system, {"role": "user", "content": text}]} for text in "ab"]
    assert prefix_of(asks[0]) == prefix_of(asks[1])
    assert prefix_of({"prompt": "hello"}) == "hello"
    assert prefix_of({"prompt": [1, 2]}) == "1\n2"
    assert prefix_of({"input": ["a", "b"]}) == "a\nb"
    assert prefix_of({}) == ""
