"""A traced stream, broken off at any of its marks, goes on as if nothing had happened."""

import json
import re
from collections import defaultdict
from typing import Any

import httpx
import pytest
from tests.fakes.fake_llm import FakeLLM
from tests.unit.server.conftest import make_state

from octavo_protocol.continuation import CONTINUE, MARK, TRACE_HEADER
from octavo_runtime.server.app import create_app
from octavo_runtime.server.options import ApiOptions

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
]
CLAUDE_TOOLS = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
GPT_TOOL = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
CALLS = (
    'Well: <tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    '<tool_call>\n{"name": "look", "arguments": {"at": "✨"}}\n</tool_call>'
)
SCORED = {"echo": True, "logprobs": 1}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
TOOLING = ApiOptions(enable_auto_tool_choice=True, tool_call_parser="hermes")
THINKING = ApiOptions(reasoning_parser="qwen3", reasoning_content_field=True)

CASES: dict[str, tuple[str, str | None, dict[str, Any], ApiOptions]] = {
    "characters of several tokens": (CHAT, "naïve 👩‍🚀 ends", {}, ApiOptions()),
    "a stop string and text like it": (CHAT, "a STO b STOP c", {"stop": ["STOP"]}, ApiOptions()),
    "a stop string that is ignored at first": (
        CHAT,
        "xx a xx b",
        {"stop": ["xx"], "min_tokens": 4},
        ApiOptions(),
    ),
    "a stop string that stays": (
        TEXT,
        "a STO b STOP c",
        {"stop": ["STOP"], "include_stop_str_in_output": True, "max_tokens": 30},
        ApiOptions(),
    ),
    "log-probabilities, samples and usage": (
        CHAT,
        "yés no",
        {"n": 2, "logprobs": True, "top_logprobs": 2, "stream_options": USAGE},
        ApiOptions(),
    ),
    "token ids": (CHAT, "é!", {"return_token_ids": True}, ApiOptions()),
    "the length": (CHAT, "abcdef", {"max_tokens": 3}, ApiOptions()),
    "a stop token": (CHAT, "abc", {"stop_token_ids": [66]}, ApiOptions()),
    "calls": (CHAT, CALLS, {"tools": TOOLS, "n": 2}, TOOLING),
    "reasoning": (CHAT, "<think>é</think>yes", {"stream_options": USAGE}, THINKING),
    "hidden reasoning": (
        CHAT,
        "<think>é</think>yes",
        {"include_reasoning": False, "return_token_ids": True, "logprobs": True},
        THINKING,
    ),
    "text with offsets and its prompt": (
        TEXT,
        None,
        {"prompt": "ab", "echo": True, "n": 2, "stream_options": USAGE, "max_tokens": 5},
        ApiOptions(),
    ),
    "text with log-probabilities": (TEXT, "ünd so", {"logprobs": 2}, ApiOptions()),
    "messages": (MESSAGES, "naïve STO, STOP", {"stop_sequences": ["STOP"]}, ApiOptions()),
    "messages that end in text held back": (
        MESSAGES,
        "one é ST",
        {"stop_sequences": ["STOP"]},
        ApiOptions(),
    ),
    "messages with calls": (MESSAGES, CALLS, {"tools": CLAUDE_TOOLS}, TOOLING),
    "messages with thinking": (MESSAGES, "<think>é</think>yes", {}, THINKING),
    "responses": (RESPONSES, "naïve 👩‍🚀", {}, ApiOptions()),
    "responses that are cut": (RESPONSES, "naïve", {"max_output_tokens": 4}, ApiOptions()),
    "responses with calls": (RESPONSES, CALLS, {"tools": [GPT_TOOL]}, TOOLING),
    "responses with reasoning": (RESPONSES, "<think>é</think>yes", {}, THINKING),
    "text of several prompts": (
        TEXT,
        None,
        {"prompt": ["abc", "d"], "n": 2, "max_tokens": 4, "stream_options": USAGE},
        ApiOptions(),
    ),
}


async def post(
    path: str, body: dict[str, Any], script: str | None, options: ApiOptions
) -> httpx.Response:
    """What a fresh replica answers."""
    llm = FakeLLM(script=script)
    llm.load(max_model_len=200)
    transport = httpx.ASGITransport(create_app(make_state(llm, options)))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
        headers = {"x-request-id": "r", TRACE_HEADER: "1"}
        return await http.post(path, json=body, headers=headers)


def request_of(path: str, body: dict[str, Any]) -> dict[str, Any]:
    prompts: dict[str, dict[str, Any]] = {
        CHAT: {"messages": HI},
        TEXT: {"prompt": "Hi"},
        MESSAGES: {"model": "first", "messages": HI, "max_tokens": 200},
        RESPONSES: {"input": "Hi"},
    }
    return {**prompts[path], "stream": True, **body}


def lines_of(stream: bytes) -> list[bytes]:
    """Without the time at which a response was completed."""
    stream = re.sub(rb'"completed_at":\d+', b'"completed_at":0', stream)
    return [line for line in stream.split(b"\n") if line]


def by_choice(lines: list[bytes]) -> dict[Any, list[Any]]:
    """Events of each choice in their order, None: of no choice, and its tokens by their entries.
    Running sums are left out.
    """
    found: defaultdict[Any, list[Any]] = defaultdict(list)
    for line in lines:
        if line.startswith(MARK):
            entry = json.loads(line[len(MARK) :])
            found["tokens", entry[0]] += entry[1]
        elif line != b"data: [DONE]":
            event = json.loads(line[len(b"data: ") :])
            choices = event["choices"]
            if choices:
                event.pop("usage", None)
            found[choices[0]["index"] if choices else None].append(event)
    return found


@pytest.mark.parametrize("name", CASES)
async def test_from_every_mark_the_rest_is_what_would_have_come(name: str) -> None:
    path, script, fields, options = CASES[name]
    body = request_of(path, fields)
    undisturbed = await post(path, body, script, options)
    assert undisturbed.status_code == 200, undisturbed.text
    lines = lines_of(undisturbed.content)
    marks = [number for number, line in enumerate(lines) if line.startswith(MARK)]
    assert len(marks) > 2
    for mark in marks:
        if lines[mark + 1].startswith(MARK):
            continue  # not yet: nothing is cut between two entries of one event
        entries = [json.loads(line[len(MARK) :]) for line in lines[: mark + 1] if line[:2] == MARK]
        head = undisturbed.headers[TRACE_HEADER]
        rest = await post(
            CONTINUE + path, {"head": head, "trace": entries, "request": body}, script, options
        )
        assert rest.status_code == 200, rest.text
        assert rest.headers[TRACE_HEADER] == head
        joined = lines[: mark + 1] + lines_of(rest.content)
        if "n" in body:  # their order among each other is free
            assert by_choice(joined) == by_choice(lines)
        else:
            assert joined == lines


async def test_a_stream_that_nobody_asks_to_trace_has_no_marks() -> None:
    transport = httpx.ASGITransport(create_app(make_state(FakeLLM(script="abc"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
        answer = await http.post(CHAT, json=request_of(CHAT, {}))
    assert TRACE_HEADER not in answer.headers
    assert MARK not in answer.content


@pytest.mark.parametrize(
    ("path", "fields"),
    [(TEXT, SCORED), (RESPONSES, {"include": ["message.output_text.logprobs"]})],
)
async def test_a_stream_that_shows_more_than_its_tokens_tell_is_not_traced(
    path: str, fields: dict[str, Any]
) -> None:
    answer = await post(path, request_of(path, fields), "abc", ApiOptions())
    assert answer.status_code == 200
    assert TRACE_HEADER not in answer.headers
    assert MARK not in answer.content


async def test_such_a_stream_cannot_go_on_either() -> None:
    body = {"head": HEAD, "trace": [[0, [65]]], "request": request_of(TEXT, SCORED)}
    answer = await post(CONTINUE + TEXT, body, "abc", ApiOptions())
    assert answer.status_code == 400
    assert "cannot go on" in answer.json()["error"]["message"]


HEAD = "1700000000-" + "0" * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "now"}, "head"),
        ({"trace": [[0, [70000]]]}, "outside the vocabulary"),
        ({"trace": [[0, [-1]]]}, "trace"),
        ({"trace": [[0, ["a"]]]}, "trace"),
        ({"trace": [[1, [65]]]}, "the request has 1 choices"),
        ({"trace": [[0, [65] * 9]]}, "at most 7 leave something to continue"),
        ({"trace": [[0, [65], 0, "stop", 3, 4, 5]]}, "trace"),
        ({"request": {"messages": HI}}, "only a stream can be continued"),
        ({"request": {"messages": 3, "stream": True}}, "messages"),
        ({"more": 1}, "more"),
    ],
)
async def test_a_continuation_that_makes_no_sense_is_refused(
    change: dict[str, Any], message: str
) -> None:
    request = request_of(CHAT, {"max_tokens": 8})
    body = {"head": HEAD, "trace": [[0, [65]]], "request": request, **change}
    answer = await post(CONTINUE + CHAT, body, "abc", ApiOptions())
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert message in answer.json()["error"]["message"]
