"""Adapters on the API side: loaded once, again after eviction, in turn where room is short."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.fake_adapters import FakeAdapters

from octavo_protocol.errors import (
    AdapterNotFoundError,
    UnavailableError,
    ValidationError,
)
from octavo_protocol.lora import LoRARequest
from octavo_runtime.engine.async_adapters import AsyncAdapters

RequestOf = Callable[..., LoRARequest]


@pytest.fixture
def request_of(tmp_path: Path) -> RequestOf:
    """An adapter's request, with a folder that its source leads to."""
    numbers: dict[str, int] = {}

    def make(name: str, *, load_inplace: bool = False) -> LoRARequest:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
        number = numbers.setdefault(name, len(numbers) + 1)
        return LoRARequest(name, number, str(folder), load_inplace=load_inplace)

    return make


async def settle() -> None:
    """Lets everything run that can run; folders are looked for in threads."""
    for _ in range(20):
        await asyncio.sleep(0.002)


async def test_first_request_loads_and_the_next_ones_do_not(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)

    for _ in range(3):
        async with adapters.using(request_of("sql")) as identity:
            assert identity == "sql@v1"

    assert [method for method, _ in engine.calls] == ["load_adapter"]
    assert adapters.book.num_loads == 1
    assert adapters.book.recent_load_s == 0.5


async def test_no_adapter_asks_nothing_of_the_engine() -> None:
    engine = FakeAdapters()
    async with AsyncAdapters(engine.control).using(None) as identity:
        assert identity == ""
    assert engine.calls == []


async def test_requests_for_one_adapter_share_its_load(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    engine.gate.clear()

    async def use() -> str:
        async with adapters.using(request_of("sql")) as identity:
            return identity

    tasks = [asyncio.create_task(use()) for _ in range(5)]
    await settle()
    engine.gate.set()

    assert await asyncio.gather(*tasks) == ["sql@v1"] * 5
    assert len(engine.calls) == 1


async def test_evicted_adapter_is_loaded_again(request_of: RequestOf) -> None:
    engine = FakeAdapters(max_adapters=1)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    for name in ("a", "b", "a"):
        async with adapters.using(request_of(name)) as identity:
            assert identity.startswith(name)

    assert identity == "a@v2"
    assert {each.name: each.is_loaded for each in adapters.book} == {"a": True, "b": False}
    assert adapters.book.num_evictions == 2


async def test_load_waits_for_room_and_later_requests_wait_behind_it(request_of: RequestOf) -> None:
    engine = FakeAdapters(max_adapters=1)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    order: list[str] = []

    async def use(name: str) -> None:
        async with adapters.using(request_of(name)):
            order.append(name)

    async with adapters.using(request_of("a")) as identity:
        engine.begin(identity)
        waiting = [asyncio.create_task(use("b"))]
        await settle()
        waiting.append(asyncio.create_task(use("a")))  # here already, but "b" came first
        await settle()
        assert order == []
        engine.end(identity)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)

    assert order == ["b", "a"]


async def test_no_room_and_nobody_who_could_make_some_is_an_error(request_of: RequestOf) -> None:
    engine = FakeAdapters(max_adapters=1)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    await adapters.load(request_of("a"), pinned=True)

    async with asyncio.timeout(5):
        with pytest.raises(UnavailableError, match="in use"):
            await adapters.load(request_of("b"))
    async with adapters.using(request_of("a")) as identity:
        assert identity == "a@v1"


async def test_load_goes_on_when_its_request_leaves(request_of: RequestOf) -> None:
    engine = FakeAdapters(max_adapters=1)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    engine.gate.clear()
    leaving = asyncio.create_task(adapters.load(request_of("a")))
    await settle()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    engine.gate.set()
    await settle()

    assert [each.identity for each in adapters.book] == ["a@v1"]


async def test_load_in_place_gives_a_new_version_and_lasts(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    await adapters.load(request_of("a"))
    with pytest.raises(ValidationError, match="already been loaded: set load_inplace"):
        await adapters.load(request_of("a"))
    await adapters.load(request_of("a", load_inplace=True))

    for _ in range(2):
        async with adapters.using(adapters.book.find("a").request) as identity:
            assert identity == "a@v2"


async def test_unloaded_adapter_is_forgotten(request_of: RequestOf) -> None:
    engine = FakeAdapters(max_adapters=1)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    await adapters.load(request_of("a"))
    await adapters.load(request_of("b"))
    await adapters.unload("a")  # which the engine has evicted
    await adapters.unload("b")

    assert len(adapters.book) == 0
    assert engine.loaded == {}
    with pytest.raises(AdapterNotFoundError, match="'b' cannot be found"):
        await adapters.unload("b")


async def test_failed_load_leaves_nothing_behind(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    engine.refuse = [ValidationError("rank 64 is over max_lora_rank 16")]

    with pytest.raises(ValidationError, match="rank 64"):
        await adapters.load(request_of("a"))
    with pytest.raises(AdapterNotFoundError, match="no such folder"):
        await adapters.load(LoRARequest("c", 3, "/nowhere/at/all"))
    assert len(adapters.book) == 0
    assert (await adapters.load(request_of("a"))).identity == "a@v1"


async def test_name_of_another_source_and_number_of_another_name_are_refused(
    request_of: RequestOf,
) -> None:
    adapters = AsyncAdapters(FakeAdapters().control)
    await adapters.load(request_of("a"))

    with pytest.raises(ValidationError, match="from another lora_path"):
        async with adapters.using(LoRARequest("a", 1, "/elsewhere")):
            pass
    with pytest.raises(ValidationError, match="belongs to the adapter 'a'"):
        async with adapters.using(LoRARequest("b", 1, "/elsewhere")):
            pass


async def test_every_change_is_told_at_once(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    told: list[tuple[list[str], list[str]]] = []
    adapters.book.on_change = lambda: told.append(
        ([each.name for each in adapters.book], [*adapters.book.errors])
    )
    await adapters.load(request_of("a"))
    engine.refuse = [ValidationError("broken")]
    with pytest.raises(ValidationError):
        await adapters.load(request_of("b"))
    await adapters.unload("a")

    assert told == [(["a"], []), (["a"], ["b"]), ([], ["b"])]


async def test_compare_finds_what_the_engine_has_lost(request_of: RequestOf) -> None:
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    await adapters.load(request_of("a"))
    engine.loaded.clear()
    await adapters.compare()

    async with adapters.using(request_of("a")) as identity:
        assert identity == "a@v2"


@pytest.mark.parametrize("seed", range(5))
async def test_many_adapters_through_little_room_all_get_their_turn(
    request_of: RequestOf, seed: int
) -> None:
    engine = FakeAdapters(max_adapters=3)
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    rng = random.Random(seed)
    names = [f"adapter-{rng.randrange(12)}" for _ in range(120)]
    num_refused = 0

    async def use(name: str) -> None:
        nonlocal num_refused
        for _ in range(20):
            async with adapters.using(request_of(name)) as identity:
                try:
                    engine.begin(identity)
                except AdapterNotFoundError:
                    num_refused += 1
                    await adapters.compare()
                    continue
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                engine.end(identity)
                return
        raise AssertionError(f"{name} never got its turn")

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(use(name))

    assert len(engine.loaded) == 3
    assert +engine.in_use == {}
    assert num_refused < len(names) / 4


async def test_an_adapter_that_a_load_has_just_evicted_is_unloaded_without_an_error(
    request_of: RequestOf,
) -> None:
    """The engine's answer to that load, which tells of the eviction, is still on its way."""
    engine = FakeAdapters()
    adapters = AsyncAdapters(engine.control, engine.max_adapters)
    await adapters.load(request_of("sql"))
    del engine.loaded["sql"]

    await adapters.unload("sql")

    assert "sql" not in adapters.book
    with pytest.raises(AdapterNotFoundError):
        await adapters.unload("sql")
