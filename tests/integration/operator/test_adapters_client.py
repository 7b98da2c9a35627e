"""Loading adapters over HTTP on a replica that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.unit.server.conftest import running_replica

from octavo_operator.adapters_client import FIRST_RETRY_S, AdaptersClient
from octavo_operator.desired import AdapterAction
from octavo_operator.queue import Key
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.resources.model_source import ModelSource
from octavo_runtime.engine.messages import LoRAInfo
from octavo_runtime.server.options import ApiOptions

pytestmark = pytest.mark.integration

KEY = Key("team", "chat")
SOURCE = ModelSource(source="hf://org/adapter", revision="abc")


class Replica:
    """status, error: what the next requests are answered with."""

    def __init__(self) -> None:
        self.status = 200
        self.error: object = {"message": "no slot is free"}
        self.requests: list[tuple[str, object]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, await request.json()))
        await self.may_answer.wait()
        body = {} if self.status == 200 else {"error": self.error}
        return web.json_response(body, status=self.status)


class World:
    def __init__(self, url: str) -> None:
        self.now = 0.0
        self.turns: asyncio.Queue[float] = asyncio.Queue()
        self.client = AdaptersClient(self._changed, clock=lambda: self.now)
        self.load = AdapterAction("chat-1", url, "sql", SOURCE)
        self.unload = AdapterAction("chat-1", url, "sql", None)

    def _changed(self, key: Key, delay_s: float) -> None:
        assert key == KEY
        self.turns.put_nowait(delay_s)

    async def next_turn(self) -> float:
        return await asyncio.wait_for(self.turns.get(), 60)


@pytest.fixture
def replica() -> Replica:
    return Replica()


@pytest.fixture
async def world(replica: Replica) -> AsyncIterator[World]:
    app = web.Application()
    app.router.add_post("/v1/{call}", replica.answer)
    async with TestServer(app) as server:
        world = World(str(server.make_url("")).rstrip("/"))
        async with world.client:
            yield world


async def test_an_adapter_is_asked_for_by_its_source_and_unloaded_by_its_name(
    world: World, replica: Replica
) -> None:
    world.client.ask(KEY, [world.load])
    assert await world.next_turn() == 0
    world.now += FIRST_RETRY_S
    world.client.ask(KEY, [world.unload])
    assert await world.next_turn() == 0
    source = {"lora_path": "hf://org/adapter", "revision": "abc"}
    assert replica.requests == [
        ("/v1/load_lora_adapter", {"lora_name": "sql", **source}),
        ("/v1/unload_lora_adapter", {"lora_name": "sql"}),
    ]
    assert world.client.errors(KEY) == {}


async def test_one_request_at_a_time_whatever_the_number_of_turns(
    world: World, replica: Replica
) -> None:
    replica.may_answer.clear()
    for _ in range(3):
        world.client.ask(KEY, [world.load])
        await asyncio.sleep(0)
    replica.may_answer.set()
    await world.next_turn()
    assert len(replica.requests) == 1


async def test_a_refusal_is_kept_in_the_replicas_words_and_retried_later_and_later(
    world: World, replica: Replica
) -> None:
    replica.status = 400
    delays = []
    for _ in range(3):
        world.client.ask(KEY, [world.load])
        delays.append(await world.next_turn())
        assert await world.next_turn() == 0
        world.client.ask(KEY, [world.load])  # too early
        world.now += delays[-1]
    assert delays == [FIRST_RETRY_S * n for n in (1, 2, 4)]
    assert len(replica.requests) == 3
    assert world.client.errors(KEY) == {("chat-1", "sql"): "no slot is free"}
    replica.status = 200
    world.client.ask(KEY, [world.load])
    await world.next_turn()
    assert world.client.errors(KEY) == {}


async def test_what_is_no_openai_error_is_shown_as_it_is(world: World, replica: Replica) -> None:
    replica.status, replica.error = 500, "broken"
    world.client.ask(KEY, [world.load])
    await world.next_turn()
    assert world.client.errors(KEY) == {("chat-1", "sql"): 'HTTP 500: {"error": "broken"}'}


async def test_a_replica_that_is_gone_is_an_error_and_is_forgotten_with_its_action(
    world: World,
) -> None:
    nowhere = AdapterAction("chat-2", "http://127.0.0.1:1", "sql", SOURCE)
    world.client.ask(KEY, [nowhere])
    await world.next_turn()
    [message] = world.client.errors(KEY).values()
    assert message.startswith("it does not answer: ")
    world.client.ask(KEY, [])
    assert world.client.errors(KEY) == {}


async def test_another_source_is_tried_at_once_and_in_place(world: World, replica: Replica) -> None:
    replica.status = 400
    world.client.ask(KEY, [world.load])
    await world.next_turn()
    await world.next_turn()
    repaired = ModelSource(source="hf://org/repaired")
    replica.status = 200
    world.client.ask(KEY, [replace(world.load, source=repaired, in_place=True)])
    assert world.client.errors(KEY) == {}
    assert await world.next_turn() == 0
    body = {"lora_name": "sql", "lora_path": "hf://org/repaired", "load_inplace": True}
    assert replica.requests[1:] == [("/v1/load_lora_adapter", body)]


@pytest.mark.parametrize("key", ["inner", "other", None])
async def test_a_server_with_a_key_loads_for_who_has_it_and_others_are_told_what_to_do(
    key: str | None, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    turns: asyncio.Queue[float] = asyncio.Queue()
    client = AdaptersClient(lambda _, delay_s: turns.put_nowait(delay_s), api_key=key)
    options = ApiOptions(allow_runtime_lora_updating=True)
    guarded = HttpOptions(api_key=("inner",))
    source = ModelSource(source=f"file://{tmp_path}")
    async with running_replica(options, guarded, lora=LoRAInfo(1, 1, 16)) as server, client:
        client.ask(KEY, [AdapterAction("chat-1", server.url, "sql", source)])
        await asyncio.wait_for(turns.get(), 60)

        if key == "inner":
            assert client.errors(KEY) == {}
            assert "sql" in server.llm.adapters.book
        else:
            [message] = client.errors(KEY).values()
            assert "asks for an API key" in message
            assert "runtime.apiKey of the chart" in message
