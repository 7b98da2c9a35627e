"""A real engine goes on with a stream of its own from any point: what follows is what followed."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from octavo_protocol.continuation import CONTINUE, MARK, TRACE_HEADER
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.async_llm import AsyncLLM
from octavo_runtime.server.app import create_app
from octavo_runtime.server.metrics import ServerMetrics
from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.state import ServerState

pytestmark = [
    pytest.mark.integration,
    pytest.mark.model,
    pytest.mark.asyncio(loop_scope="module"),
]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
START_S = 120.0
ASKED = {"messages": [{"role": "user", "content": "Count from one to twenty in words."}]}
FACES = {"prompt": "😀😃😄😁😆😅😂🤣😊😇🙂🙃😉😌😍" * 3}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": (CHAT, {**ASKED, "temperature": 0, "max_tokens": 24}),
    "characters of several tokens": (TEXT, {**FACES, "temperature": 0, "max_tokens": 20}),
    "seeded, with penalties and log-probabilities": (
        CHAT,
        {
            **ASKED,
            "seed": 7,
            "temperature": 1.2,
            "frequency_penalty": 0.7,
            "repetition_penalty": 1.1,
            "min_tokens": 20,
            "logprobs": True,
            "top_logprobs": 2,
            "max_tokens": 24,
        },
    ),
    "two samples": (CHAT, {**ASKED, "n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 16}),
    "a stop string": (
        TEXT,
        {"prompt": "one, two, three, four,", "stop": ["eight, "], "temperature": 0},
    ),
    "a schema": (
        CHAT,
        {
            **ASKED,
            "seed": 5,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": SCHEMA},
            },
            "max_tokens": 40,
        },
    ),
    "a forced call": (
        CHAT,
        {**ASKED, "tools": [TOOL], "tool_choice": "required", "temperature": 0, "max_tokens": 40},
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(smollm2: Path) -> AsyncIterator[httpx.AsyncClient]:
    """One replica of SmolLM2 in this process."""
    config = EngineConfig(model=smollm2, dtype="float32", max_model_len=512)
    llm = AsyncLLM.start(config, Tokenizer.from_folder(smollm2))
    options = ApiOptions(enable_auto_tool_choice=True, tool_call_parser="hermes")
    try:
        await asyncio.wait_for(llm.wait_ready(), START_S)
        state = ServerState(
            llm=llm,
            served_names=("smollm2",),
            max_body_bytes=2**20,
            metrics=ServerMetrics(llm, options, model="smollm2"),
            options=options,
            is_registered=True,
        )
        transport = httpx.ASGITransport(create_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            yield client
    finally:
        await llm.shutdown()


@dataclass
class Answer:
    """What a stream, or two parts of one, amounts to, by choice. tail: usage and the end."""

    said: defaultdict[int, str] = field(default_factory=lambda: defaultdict(str))
    ended: dict[int, Any] = field(default_factory=dict)
    logprobs: defaultdict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    token_ids: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    names: set[tuple[str, int]] = field(default_factory=set)
    roles: int = 0
    tail: list[Any] = field(default_factory=list)

    def add(self, lines: list[bytes]) -> "Answer":
        for line in lines:
            if line.startswith(MARK):
                choice, token_ids = json.loads(line[len(MARK) :])[:2]
                self.token_ids[choice] += token_ids
            elif line == b"data: [DONE]":
                self.tail.append("[DONE]")
            else:
                self._add_event(json.loads(line[len(b"data: ") :]))
        return self

    def _add_event(self, event: dict[str, Any]) -> None:
        self.names.add((event["id"], event["created"]))
        if not event["choices"]:
            event["usage"].pop("prompt_tokens_details", None)
            self.tail.append(event["usage"])
        for choice in event["choices"]:
            index, delta = choice["index"], choice.get("delta", choice)
            self.roles += "role" in delta
            self.said[index] += delta.get("content") or delta.get("text") or ""
            for call in delta.get("tool_calls", ()):
                self.said[index] += json.dumps([call.get("id"), call["function"].get("name")])
                self.said[index] += call["function"].get("arguments") or ""
            self.logprobs[index] += (choice["logprobs"] or {}).get("content") or []
            if choice["finish_reason"]:
                self.ended[index] = choice["finish_reason"], choice.get("stop_reason")


def is_close(first: Answer, second: Answer) -> bool:
    """Equal but for what other batches round otherwise in log-probabilities."""
    for index, positions in first.logprobs.items():
        for one, other in zip(positions, second.logprobs[index], strict=True):
            assert one["token"] == other["token"]
            assert one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
    first.logprobs.clear()
    second.logprobs.clear()
    return first == second


async def lines_of(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    headers = {"x-request-id": "r", TRACE_HEADER: "1"}
    response = await http.post(path, json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    return response, [line for line in response.content.split(b"\n") if line]


@pytest.mark.parametrize("name", REQUESTS)
async def test_from_every_point_a_stream_goes_on_as_it_did(
    http: httpx.AsyncClient, name: str
) -> None:
    path, fields = REQUESTS[name]
    body = {**fields, "stream": True, "stream_options": {"include_usage": True}}
    response, lines = await lines_of(http, path, body)
    head = response.headers[TRACE_HEADER]
    marks = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    ends = [mark for mark in marks if not lines[mark + 1].startswith(MARK)]
    assert len(ends) > 3

    async def joined(end: int) -> Answer:
        shown = lines[: end + 1]
        trace = [json.loads(line[len(MARK) :]) for line in shown if line.startswith(MARK)]
        asked = {"head": head, "trace": trace, "request": body}
        _, rest = await lines_of(http, CONTINUE + path, asked)
        return Answer().add(shown).add(rest)

    for answer in await asyncio.gather(*map(joined, ends)):
        assert is_close(Answer().add(lines), answer)
