"""Facts about models from a hub on this machine."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from octavo_operator.model_config import RETRY_S, ModelConfigs, hub_model
from octavo_operator.queue import Key

pytestmark = pytest.mark.integration

KEY = Key("team", "chat")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def deployment(source: str, revision: str | None = None) -> dict[str, Any]:
    return {"spec": {"model": {"source": source, "revision": revision}}}


class Hub:
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        raw = self.files.get(request.path)
        return web.Response(status=404) if raw is None else web.Response(body=raw)


class World:
    def __init__(self, url: str) -> None:
        self.now = 0.0
        self.turns: asyncio.Queue[Key] = asyncio.Queue()
        self.configs = ModelConfigs(self.turns.put_nowait, url, clock=lambda: self.now)

    async def next_turn(self) -> Key:
        return await asyncio.wait_for(self.turns.get(), 60)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def world(hub: Hub) -> AsyncIterator[World]:
    app = web.Application()
    app.router.add_get("/{path:.*}", hub.answer)
    async with TestServer(app) as server:
        world = World(str(server.make_url("")))
        yield world
        await world.configs.close()


async def test_facts_come_later_and_once_and_lead_to_a_turn(world: World, hub: Hub) -> None:
    model = deployment("hf://org/model", "v/1")
    hub.files["/org/model/resolve/v/1/config.json"] = json.dumps(CONFIG).encode()
    assert world.configs.facts(KEY, model) is None
    assert world.configs.facts(KEY, model) is None
    assert await world.next_turn() == KEY
    facts = world.configs.facts(KEY, model)
    assert facts is not None
    assert facts.max_model_len == 2048
    assert hub.asked == [
        "/org/model/resolve/v/1/config.json",
        "/org/model/resolve/v/1/model.safetensors.index.json",
    ]


@pytest.mark.parametrize("raw", [None, b"[]", b"{", b"{}"])
async def test_a_model_that_cannot_be_read_has_no_facts_and_is_asked_for_rarely(
    world: World, hub: Hub, raw: bytes | None
) -> None:
    model = deployment("org/model")
    path = "/org/model/resolve/main/config.json"
    if raw is not None:
        hub.files[path] = raw
    for times in (1, 2):
        while hub.asked.count(path) < times or world.configs.is_reading:
            assert world.configs.facts(KEY, model) is None
            await asyncio.sleep(0.001)
        assert world.configs.facts(KEY, model) is None
        assert (hub.asked.count(path), world.configs.is_reading) == (times, False)
        world.now += RETRY_S


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://org/model", ("org/model", "main")),
        ("org/model", ("org/model", "main")),
        ("smollm2", None),
        ("s3://bucket/model", None),
        ("file:///models/chat", None),
        (None, None),
        (3, None),
    ],
)
def test_only_models_of_the_hub_are_asked_for(source: Any, expected: object) -> None:
    assert hub_model(deployment(source)) == expected


@pytest.mark.parametrize("body", [{}, {"spec": None}, {"spec": {"model": "x"}}])
def test_odd_specs_name_no_model(body: dict[str, Any]) -> None:
    assert hub_model(body) is None
