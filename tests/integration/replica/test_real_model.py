"""A real model behind the server: formats hold, scores agree, what is asked twice is said twice."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from octavo_protocol.serving import DrainingServer, bind
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.state import ServerState

pytestmark = [pytest.mark.integration, pytest.mark.model]

_QUESTION: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
_TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 20},
                    "unit": {"enum": ["C", "F"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]
_START_S = 120.0


@dataclass
class Served:
    """One replica of SmolLM2 in this process, and its clients."""

    client: openai.AsyncOpenAI
    http: httpx.AsyncClient


@pytest.fixture
async def served(smollm2: Path) -> AsyncIterator[Served]:
    config = EngineConfig(model=smollm2, dtype="float32", max_model_len=512, enable_sleep_mode=True)
    llm = AsyncLLM.start(config, Tokenizer.from_folder(smollm2))
    options = ApiOptions(dev_mode=True, enable_auto_tool_choice=True, tool_call_parser="hermes")
    try:
        await asyncio.wait_for(llm.wait_ready(), _START_S)
        state = ServerState(
            llm=llm,
            served_names=("smollm2",),
            max_body_bytes=2**20,
            metrics=ServerMetrics(llm, options, model="smollm2"),
            options=options,
            is_registered=True,
        )
        server = DrainingServer(create_app(state))
        sock = bind("127.0.0.1", 0)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        async with (
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http,
        ):
            yield Served(client, http)
        server.should_exit = True
        await serving
        sock.close()
    finally:
        await llm.shutdown()


async def test_a_forced_call_has_arguments_that_fit_the_schema(served: Served) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    choices: list[Any] = ["required", named]
    for choice in choices:
        answer = await served.client.chat.completions.create(
            model="smollm2",
            messages=_QUESTION,
            tools=_TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=200,
        )

        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "weather"
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")


async def test_a_streamed_call_joins_to_the_whole_one(served: Served) -> None:
    asked: Any = {
        "model": "smollm2",
        "messages": _QUESTION,
        "tools": _TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 200,
    }
    whole = await served.client.chat.completions.create(**asked)
    [call] = whole.choices[0].message.tool_calls or []
    names, arguments, reasons = [], "", []
    async for chunk in await served.client.chat.completions.create(**asked, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            names += [piece.function.name] if piece.function.name else []
            arguments += piece.function.arguments or ""
        reasons += [chunk.choices[0].finish_reason] if chunk.choices[0].finish_reason else []

    assert (names, json.loads(arguments)) == (["weather"], json.loads(call.function.arguments))
    assert reasons == [whole.choices[0].finish_reason] == ["tool_calls"]


async def test_an_answer_follows_its_json_schema(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["age"],
        "additionalProperties": False,
    }
    answer = await served.client.chat.completions.create(
        model="smollm2",
        messages=_QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        temperature=0,
        max_tokens=60,
    )

    said = json.loads(answer.choices[0].message.content or "")
    assert said.keys() == {"age"}
    assert 0 <= said["age"] <= 99


async def test_what_was_said_is_scored_alike_as_part_of_a_prompt(served: Served) -> None:
    """The prompt's log-probabilities are those that the same tokens had when they were sampled."""
    prompt = "The capital of France is"
    said = await served.client.completions.create(
        model="smollm2", prompt=prompt, temperature=0, max_tokens=8, logprobs=0
    )
    echoed = await served.client.completions.create(
        model="smollm2",
        prompt=prompt + said.choices[0].text,
        max_tokens=0,
        echo=True,
        logprobs=0,
    )

    assert said.choices[0].logprobs is not None
    assert echoed.choices[0].logprobs is not None
    tokens = said.choices[0].logprobs.tokens or []
    again = echoed.choices[0].logprobs
    assert (again.tokens or [])[-len(tokens) :] == tokens
    scores = (again.token_logprobs or [])[-len(tokens) :]
    assert scores == pytest.approx(said.choices[0].logprobs.token_logprobs, abs=1e-3)
    assert echoed.choices[0].text == prompt + said.choices[0].text


async def test_one_beam_is_the_greedy_answer_and_more_are_at_least_as_likely(
    served: Served,
) -> None:
    async def score(**options: Any) -> tuple[float, str]:
        answer = await served.client.completions.create(
            model="smollm2",
            prompt="The capital of France is",
            temperature=0,
            max_tokens=5,
            logprobs=1,
            extra_body=options | {"ignore_eos": True},
        )
        assert answer.choices[0].logprobs is not None
        return sum(answer.choices[0].logprobs.token_logprobs or []), answer.choices[0].text

    greedy, greedy_text = await score()
    one, one_text = await score(use_beam_search=True)
    three, _ = await score(use_beam_search=True, n=3)

    assert one_text == greedy_text
    assert one == pytest.approx(greedy, abs=1e-3)
    assert three >= greedy - 1e-3


@pytest.mark.parametrize("level", [1, 2])
async def test_after_sleep_and_wake_up_the_model_says_the_same(served: Served, level: int) -> None:
    async def say() -> str:
        answer = await served.client.completions.create(
            model="smollm2", prompt="One, two,", temperature=0, max_tokens=6
        )
        return answer.choices[0].text

    before = await say()
    slept = await served.http.post("/sleep", params={"level": level})
    with pytest.raises(openai.InternalServerError, match="paused"):
        await say()
    woken = await served.http.post("/wake_up")

    assert (slept.status_code, woken.json()["status"]) == (200, "awake")
    assert await say() == before


async def test_metrics_of_both_names_agree(served: Served) -> None:
    await served.client.completions.create(model="smollm2", prompt="One, two,", max_tokens=6)
    lines = (await served.http.get("/metrics")).text.splitlines()
    values = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"
    }

    labels = '{engine="0",model_name="smollm2"}'
    for vllm, octavo in {
        "generation_tokens_total": "generation_tokens_total",
        "time_to_first_token_seconds_count": "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count": "inter_token_latency_seconds_count",
        "prefix_cache_queries_total": "prefix_cache_queried_tokens_total",
    }.items():
        assert values[f"vllm:{vllm}{labels}"] == values[f"octavo_runtime_{octavo}"] > 0, vllm
    assert values[f"vllm:request_queue_time_seconds_count{labels}"] == 1
