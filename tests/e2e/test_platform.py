"""The whole path with the real model: router, replicas, Redis, and what happens when they die."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.e2e.make_reference import MAX_TOKENS, REFERENCE
from tests.e2e.platform import Platform

pytestmark = [pytest.mark.model, pytest.mark.integration, pytest.mark.timeout(600)]

# Real agent sessions, where they are at hand; a made-up one is always tested.
TRACES = Path(os.environ.get("OCTAVO_TRACES", Path(__file__).parents[3] / "shared" / "traces"))
RECOVERY_S = 60.0
COLOUR: Any = {
    "name": "colour",
    "schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def platform(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(smollm2, tmp_path_factory.mktemp("platform")) as running:
        yield running


@pytest.fixture(scope="module")
def rows() -> list[dict[str, list[int]]]:
    """Prompts and Hugging Face's greedy outputs, both as token ids."""
    rows: list[dict[str, list[int]]] = json.loads(REFERENCE.read_text())
    return rows


async def outputs(platform: Platform, prompts: list[list[int]], *, stream: bool) -> list[list[int]]:
    """Greedy output tokens of all prompts, sixteen at a time, by the official client."""
    limit = asyncio.Semaphore(16)
    async with AsyncOpenAI(
        base_url=f"{platform.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as client:

        async def one(prompt: list[int]) -> list[int]:
            body = {"return_token_ids": True}
            async with limit:
                if not stream:
                    answer = await client.completions.create(
                        model="smollm2",
                        prompt=prompt,
                        max_tokens=MAX_TOKENS,
                        temperature=0,
                        extra_body=body,
                    )
                    return list(answer.choices[0].token_ids)  # type: ignore[attr-defined]
                tokens: list[int] = []
                async for chunk in await client.completions.create(
                    model="smollm2",
                    prompt=prompt,
                    max_tokens=MAX_TOKENS,
                    temperature=0,
                    stream=True,
                    extra_body=body,
                ):
                    tokens += chunk.choices[0].token_ids  # type: ignore[attr-defined]
                return tokens

        return await asyncio.gather(*(one(prompt) for prompt in prompts))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_greedy_output_through_the_router_equals_hugging_face(
    platform: Platform, rows: list[dict[str, list[int]]], stream: bool
) -> None:
    got = await outputs(platform, [row["prompt"] for row in rows], stream=stream)
    assert got == [row["output"] for row in rows]


def session_prompts() -> list[tuple[str, list[str]]]:
    """(name, growing prompts) of agent sessions that fit the test's context."""
    turns = ["You are an agent in a shell. Task: find the slow test and make it fast.\n"]
    for i in range(8):
        turns.append(turns[-1] + f"$ step {i}: ls -la src/module_{i}\n" + f"file_{i}.py\n" * 12)
    sessions = [("made-up", turns)]
    for path in sorted((TRACES / "lmcache-agent" / "miniswe").glob("*.jsonl")):
        if path.stat().st_size > 80_000:
            continue
        calls = [json.loads(line) for line in path.read_text().splitlines()]
        prompts = [call["input"] for call in calls if len(call["input"]) < 9_000]
        sessions.append((path.stem, prompts[:4]))
    return sessions


def test_the_router_predicts_the_cached_tokens_that_replicas_report(platform: Platform) -> None:
    compared = 0
    for name, prompts in session_prompts():
        for prompt in prompts:
            response = httpx.post(
                f"{platform.url}/v1/completions",
                json={"model": "smollm2", "prompt": prompt, "max_tokens": 1, "temperature": 0},
                timeout=300,
            )
            assert response.status_code == 200, response.text
            route = dict(
                part.split("=", 1) for part in response.headers["x-octavo-route"].split(";")
            )
            usage = response.json()["usage"]
            assert int(route["prompt"]) == usage["prompt_tokens"]
            assert int(route["cached"]) == usage["prompt_tokens_details"]["cached_tokens"], name
            compared += int(route["cached"]) > 0
    assert compared >= 8, "too few prompts met the cache for the comparison to mean anything"


def test_every_api_goes_where_its_prompt_is_cached(platform: Platform) -> None:
    """The same conversation through three APIs is one prompt, so the later ones find it cached."""
    messages = [{"role": "user", "content": "Count from one to ten, in words. " * 12}]
    common = {"model": "smollm2", "temperature": 0, "stream": False}
    asked = {
        "/v1/chat/completions": {"messages": messages, "max_tokens": 4},
        "/v1/responses": {"input": messages, "max_output_tokens": 4},
        "/v1/messages": {"messages": messages, "max_tokens": 4},
    }
    told: list[tuple[int, int]] = []
    for path, body in asked.items():
        response = httpx.post(f"{platform.url}{path}", json=common | body, timeout=300)
        assert response.status_code == 200, response.text
        route = dict(part.split("=", 1) for part in response.headers["x-octavo-route"].split(";"))
        usage = response.json()["usage"]
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        cached = details.get("cached_tokens", usage.get("cache_read_input_tokens"))
        assert int(route["cached"]) == cached, path
        told.append((int(route["prompt"]), cached))
    assert len({prompt for prompt, _ in told}) == 1
    assert [cached > 64 for _, cached in told] == [False, True, True]


async def test_official_clients_stream_every_api_through_the_router(platform: Platform) -> None:
    async with (
        AsyncOpenAI(base_url=f"{platform.url}/v1", api_key="none", max_retries=0) as gpt,
        AsyncAnthropic(base_url=platform.url, api_key="none", max_retries=0) as claude,
    ):
        response = await gpt.responses.create(
            model="smollm2", input="Name a colour.", max_output_tokens=8, stream=True
        )
        kinds = [event.type async for event in response]
        async with claude.messages.stream(
            model="smollm2",
            max_tokens=8,
            messages=[{"role": "user", "content": "Name a colour."}],
        ) as stream:
            said = await stream.get_final_text()
        form = await gpt.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "A colour as JSON."}],
            response_format={"type": "json_schema", "json_schema": COLOUR},
            max_tokens=64,
        )

    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert said
    assert json.loads(form.choices[0].message.content or "")["colour"] in ("red", "green")


async def test_killed_redis_costs_no_request(
    platform: Platform, rows: list[dict[str, list[int]]]
) -> None:
    before = await outputs(platform, [row["prompt"] for row in rows[:8]], stream=False)
    running = asyncio.create_task(outputs(platform, [row["prompt"] for row in rows], stream=False))
    await asyncio.sleep(0)
    platform.kill_redis()
    assert await running == [row["output"] for row in rows]
    assert before == [row["output"] for row in rows[:8]]
    await asyncio.to_thread(
        platform.wait_until,
        lambda: (
            platform.metric("octavo_router_degraded") == 0
            and platform.metric("octavo_router_prefix_index_entries") > 0
            and platform.is_ready()
        ),
        RECOVERY_S,
    )


async def test_a_killed_replica_costs_no_request_that_had_not_streamed(
    platform: Platform, rows: list[dict[str, list[int]]]
) -> None:
    retries = platform.metric("octavo_router_retries_total")
    running = asyncio.create_task(outputs(platform, [row["prompt"] for row in rows], stream=False))
    busy = await asyncio.to_thread(platform.wait_until, platform.busy_replica, RECOVERY_S)
    platform.kill_replica(busy)
    assert await running == [row["output"] for row in rows]
    assert platform.metric("octavo_router_retries_total") > retries
    await asyncio.to_thread(platform.wait_until, platform.is_ready, RECOVERY_S)


STREAMS: list[dict[str, Any]] = [
    {"prompt": "😀😃😄😁😆😅😂🤣😊😇🙂🙃" * 3, "max_tokens": 24},
    {"prompt": "one, two, three, four,", "stop": ["nine, "], "max_tokens": 24},
    {"prompt": "Once upon a time", "n": 2, "seed": 7, "temperature": 1.0, "max_tokens": 24},
]


async def texts(client: httpx.AsyncClient, body: dict[str, Any], heard: Any = None) -> list[str]:
    """Each choice of a streamed completion, and the usage. heard: gets the replica and the number
    of events so far.
    """
    asked = {"model": "smollm2", "temperature": 0, "stream": True, **body}
    asked["stream_options"] = {"include_usage": True}
    said = [""] * body.get("n", 1)
    ends, num_events = 0, 0
    async with client.stream("POST", "/v1/completions", json=asked) as response:
        replica = response.headers["x-octavo-route"].split(";")[0].removeprefix("replica=")
        async for line in response.aiter_lines():
            if not line or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            num_events += 1
            for choice in event["choices"]:
                said[choice["index"]] += choice["text"]
                ends += choice["finish_reason"] is not None
            if not event["choices"]:
                said.append(f"{event['usage']['completion_tokens']} tokens, {ends} ends")
            elif heard is not None:
                await heard(replica, num_events)
    assert line == "" or line == "data: [DONE]"
    return said


@pytest.mark.parametrize("kill_at", [1, 12, 23])
async def test_a_killed_replica_is_a_pause_to_its_streams(platform: Platform, kill_at: int) -> None:
    async def kill(replica: str, num_events: int) -> None:
        if num_events == kill_at:
            platform.kill_replica(replica)

    async with httpx.AsyncClient(base_url=platform.url, timeout=120) as client:
        undisturbed = await asyncio.gather(*(texts(client, body) for body in STREAMS))
        continued = platform.metric("octavo_router_continued_streams_total")
        trigger = {"prompt": "A long story:", "max_tokens": 24}
        told = await texts(client, trigger)
        [*disturbed, retold] = await asyncio.gather(
            *(texts(client, body) for body in STREAMS), texts(client, trigger, kill)
        )
    assert (disturbed, retold) == (undisturbed, told)
    assert platform.metric("octavo_router_continued_streams_total") > continued
    await asyncio.to_thread(platform.wait_until, platform.has_recovered, RECOVERY_S)
