"""LoRA adapters of a real server, `openai` as the client: each answers as if it were alone."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.fakes.lora_adapters import write_adapter
from tests.fakes.tiny_model import write_tiny_model
from tests.integration.replica.harness import eventually

from octavo.local.ports import free_port

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    model = write_tiny_model(folder / "tiny")
    for seed, name in enumerate(("a", "b", "c", "d"), 1):
        write_adapter(folder / name, model, seed=seed, scale=4.0)
    write_adapter(folder / "large", model, seed=9, rank=64)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    flags = (
        f"--port {port} --load-format dummy --dtype float32 --enable-lora --max-loras 2 "
        "--max-cpu-loras 3 --allow-runtime-lora-updating --num-gpu-blocks-override 256 "
        f"--served-model-name base --lora-modules a={folder / 'a'} b={folder / 'b'}"
    )
    command = [sys.executable, "-m", "octavo", "serve", str(folder / "tiny"), *flags.split()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    try:

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return httpx.get(f"{url}/ready").status_code == 200
            except httpx.TransportError:
                return False

        eventually(is_ready, "the server is ready", 90)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        yield http


async def answer(client: openai.AsyncOpenAI, model: str) -> str:
    made = await client.completions.create(
        model=model, prompt=PROMPT, max_tokens=6, temperature=0, extra_body={"ignore_eos": True}
    )
    return made.choices[0].text


async def test_all_models_are_listed_and_answer_side_by_side_as_alone(
    client: openai.AsyncOpenAI,
) -> None:
    listed = {model.id: getattr(model, "parent", None) async for model in client.models.list()}
    alone = {name: await answer(client, name) for name in ("base", "a", "b")}
    together = await asyncio.gather(*(answer(client, name) for name in [*alone] * 4))

    assert listed == {"base": None, "a": "base", "b": "base"}
    assert together == [*alone.values()] * 4
    assert len(set(alone.values())) == 3


async def test_samples_streams_and_logprobs_are_the_adapters(client: openai.AsyncOpenAI) -> None:
    plain, adapted = [
        await client.completions.create(
            model=model, prompt=PROMPT, max_tokens=3, n=2, logprobs=2, temperature=0.5, seed=1
        )
        for model in ("base", "a")
    ]
    stream = await client.completions.create(
        model="a",
        prompt=PROMPT,
        max_tokens=6,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    streamed = [chunk async for chunk in stream]

    assert len(adapted.choices) == 2
    assert plain.choices[0].logprobs != adapted.choices[0].logprobs
    assert "".join(chunk.choices[0].text for chunk in streamed) == await answer(client, "a")
    assert {chunk.model for chunk in streamed} == {"a"}


async def test_unknown_model_is_told_which_there_are(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'base', 'a', 'b'"):
        await answer(client, "nobody")


async def test_adapter_is_loaded_replaced_and_unloaded_under_others(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, folder: Path
) -> None:
    before = {name: await answer(client, name) for name in ("base", "a")}

    async def load(path: str, **more: Any) -> tuple[int, str]:
        body = {"lora_name": "x", "lora_path": str(folder / path), **more}
        made = await http.post("/v1/load_lora_adapter", json=body)
        return made.status_code, made.text

    added = await load("c")
    first = await answer(client, "x")
    again = await load("d")
    replaced = await load("d", load_inplace=True)
    second = await answer(client, "x")
    removed = await http.post("/v1/unload_lora_adapter", json={"lora_name": "x"})

    assert added == (200, "Success: LoRA adapter 'x' added successfully.")
    assert (again[0], replaced[0], removed.status_code) == (400, 200, 200)
    assert len({first, second, *before.values()}) == 4
    with pytest.raises(openai.NotFoundError):
        await answer(client, "x")
    assert {name: await answer(client, name) for name in before} == before


async def test_more_adapters_than_room_are_loaded_as_requests_ask_for_them(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, folder: Path
) -> None:
    for name in ("c", "d"):
        body = {"lora_name": name, "lora_path": str(folder / name)}
        (await http.post("/v1/load_lora_adapter", json=body)).raise_for_status()
    names = ("a", "b", "c", "d")
    alone = {name: await answer(client, name) for name in names}
    together = await asyncio.gather(*(answer(client, name) for name in names * 6))

    assert len(set(alone.values())) == 4
    assert together == [*alone.values()] * 6
    assert "octavo_runtime_adapters_loaded 3.0" in (await http.get("/metrics")).text
    for name in ("c", "d"):
        await http.post("/v1/unload_lora_adapter", json={"lora_name": name})


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [("large", 400, "InvalidUserInput"), ("nothing", 404, "not_found_error")],
)
async def test_broken_adapter_is_refused_and_its_neighbours_go_on(
    client: openai.AsyncOpenAI,
    http: httpx.AsyncClient,
    folder: Path,
    path: str,
    status: int,
    kind: str,
) -> None:
    expected = await answer(client, "a")
    body = {"lora_name": "x", "lora_path": str(folder / path)}
    neighbours = asyncio.gather(*(answer(client, "a") for _ in range(3)))
    refused = await http.post("/v1/load_lora_adapter", json=body)

    assert (refused.status_code, refused.json()["error"]["type"]) == (status, kind)
    assert await neighbours == [expected] * 3
