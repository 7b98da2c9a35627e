"""/v1/messages through Anthropic's own client: whole, streamed, with tools, counted, refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from tests.unit.server.conftest import Replica

from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.reasoning_parsers import reasoning_parser
from octavo_runtime.server.tool_parsers import tool_parser

HI: Any = [{"role": "user", "content": "hi"}]
ADD: Any = {
    "name": "add",
    "description": "Adds",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CALL = '[{"name": "add", "arguments": {"a": 1}}]'


@pytest.fixture
def thinker(replica: Replica) -> Replica:
    """A replica whose model thinks first and may call what it likes."""
    replica.llm.load(max_model_len=256)
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    replica.llm.script = f"<think>hm</think>Wait{call}"
    replica.state.options = ApiOptions(enable_auto_tool_choice=True, tool_call_parser="hermes")
    replica.state.tool_parser = tool_parser("hermes")
    replica.state.reasoning_parser = reasoning_parser("qwen3")
    return replica


@pytest.fixture
async def claude(replica: Replica) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        anthropic.DefaultAsyncHttpxClient(verify=False, trust_env=False) as inner,
        anthropic.AsyncAnthropic(
            base_url=replica.url, api_key="none", max_retries=0, http_client=inner
        ) as client,
    ):
        yield client


def prompt_of(replica: Replica) -> str:
    return replica.llm.tokenizer.decode(replica.llm.requests[-1].prompt_token_ids)


async def test_text_is_answered_whole(replica: Replica, claude: anthropic.AsyncAnthropic) -> None:
    replica.llm.script = "Hello"

    message = await claude.messages.create(
        model="first",
        max_tokens=20,
        messages=HI,
        system="Be kind",
        extra_body={"temperature": 0.5, "top_k": 3},
    )

    assert message.id.startswith("msg_")
    assert message.to_dict() == {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "model": "first",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len("system: Be kind\nuser: hi\nassistant:"),
            "output_tokens": 6,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
        },
    }
    sampling = replica.llm.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 3, 20)


@pytest.mark.parametrize(
    ("options", "stop_reason", "stop_sequence", "text"),
    [
        ({"max_tokens": 3}, "max_tokens", None, "abc"),
        ({"max_tokens": 20, "stop_sequences": ["x", "cd"]}, "stop_sequence", "cd", "ab"),
        ({"max_tokens": 20}, "end_turn", None, "abcdef"),
    ],
)
async def test_why_it_stopped(
    replica: Replica,
    claude: anthropic.AsyncAnthropic,
    options: Any,
    stop_reason: str,
    stop_sequence: str | None,
    text: str,
) -> None:
    replica.llm.script = "abcdef"

    whole = await claude.messages.create(model="first", messages=HI, **options)
    async with claude.messages.stream(model="first", messages=HI, **options) as stream:
        streamed = await stream.get_final_message()

    for message in (whole, streamed):
        assert (message.stop_reason, message.stop_sequence) == (stop_reason, stop_sequence)
        assert [block.to_dict() for block in message.content] == [{"type": "text", "text": text}]
    assert whole.usage == streamed.usage


async def test_stream_is_named_events_in_order(replica: Replica) -> None:
    replica.llm.script = "ab"
    body = {"model": "first", "max_tokens": 9, "messages": HI, "stream": True}

    answer = await replica.http.post("/v1/messages", json=body)

    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.strip().split("\n\n")]
    names = [name.removeprefix("event: ") for name, _ in frames]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert (
        names
        == [event["type"] for event in events]
        == [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    )
    assert events[0]["message"]["content"] == []
    assert events[2]["content_block"] == {"type": "text", "text": ""}
    assert events[3]["delta"] == {"type": "text_delta", "text": "a"}
    assert events[6]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[6]["usage"]["output_tokens"] == 3


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "add"}])
async def test_tool_is_used_and_its_result_answered(
    replica: Replica, claude: anthropic.AsyncAnthropic, choice: Any
) -> None:
    replica.llm.script = CALL
    asked: Any = {
        "model": "first",
        "max_tokens": 50,
        "messages": HI,
        "tools": [ADD],
        "tool_choice": choice,
    }
    whole = await claude.messages.create(**asked)
    async with claude.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()

    for message in (whole, streamed):
        (block,) = [block.to_dict() for block in message.content]
        assert block == {"type": "tool_use", "id": block["id"], "name": "add", "input": {"a": 1}}
        assert message.stop_reason == "tool_use"

    replica.llm.script = "one"
    (call,) = whole.content
    assert call.type == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "1"}
    said: Any = {"role": "assistant", "content": whole.content}
    final = await claude.messages.create(
        model="first",
        max_tokens=9,
        messages=[*HI, said, {"role": "user", "content": [result]}],
    )

    assert final.stop_reason == "end_turn"
    assert prompt_of(replica) == "user: hi\nassistant: \ntool: 1\nassistant:"


async def test_thinking_text_and_tool_use_are_blocks_in_order(
    thinker: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    asked: Any = {"model": "first", "max_tokens": 90, "messages": HI, "tools": [ADD]}

    async with claude.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    whole = await claude.messages.create(**asked)

    for message in (whole, streamed):
        thinking, text, use = [block.to_dict() for block in message.content]
        assert thinking == {"type": "thinking", "thinking": "hm", "signature": ""}
        assert text == {"type": "text", "text": "Wait"}
        assert (use["name"], use["input"], message.stop_reason) == ("add", {"a": 1}, "tool_use")


async def test_answer_that_the_client_has_begun_is_continued(
    replica: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    await claude.messages.create(
        model="first",
        max_tokens=3,
        messages=[*HI, {"role": "assistant", "content": "I say "}],
    )

    assert prompt_of(replica) == "user: hi\nassistant: I say "


async def test_tokens_are_counted_without_an_answer(
    replica: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    counted = await claude.messages.count_tokens(model="first", messages=HI, system="Be kind")

    assert counted.input_tokens == len("system: Be kind\nuser: hi\nassistant:")
    assert replica.llm.requests == []


@pytest.mark.parametrize(
    ("fields", "error", "kind", "message"),
    [
        (
            {"model": "third"},
            anthropic.NotFoundError,
            "not_found_error",
            "the model 'third' does not exist; this server has 'first', 'second/alias'",
        ),
        (
            {"max_tokens": 0},
            anthropic.BadRequestError,
            "invalid_request_error",
            "max_tokens: Input should be greater than or equal to 1 (got 0)",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            None,
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 100}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            None,
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            anthropic.BadRequestError,
            "invalid_request_error",
            "thinking.budget_tokens (2000) must be less than max_tokens (9)",
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}},
            anthropic.BadRequestError,
            "invalid_request_error",
            "tool_choice names 'sub', which is not among the tools",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_is_in_anthropic_s_envelope(
    claude: anthropic.AsyncAnthropic,
    fields: Any,
    error: type[anthropic.APIStatusError],
    kind: str,
    message: str | None,
    stream: bool,
) -> None:
    asked = {"model": "first", "max_tokens": 9, "messages": HI, "stream": stream} | fields

    with pytest.raises(error) as caught:
        await claude.messages.create(**asked)

    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == kind
    if message is not None:
        assert caught.value.body["error"]["message"] == message


async def test_image_is_refused_by_its_type(replica: Replica) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://a"}}
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": [image]}]}

    answer = await replica.http.post("/v1/messages", json=body)

    assert answer.status_code == 400
    assert "content blocks of type 'image' are not supported" in answer.json()["error"]["message"]


async def test_server_that_drains_is_overloaded(
    replica: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    replica.state.is_draining = True

    with pytest.raises(anthropic.APIStatusError) as caught:
        await claude.messages.create(model="first", max_tokens=9, messages=HI)

    assert caught.value.status_code == 503
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "overloaded_error"


async def test_engine_that_dies_ends_the_stream_with_an_error_event(
    replica: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    seen = []

    async def read() -> None:
        async with claude.messages.stream(model="first", max_tokens=30, messages=HI) as stream:
            async for event in stream:
                seen.append(event.type)
                if event.type == "content_block_delta" and replica.llm.is_healthy:
                    replica.llm.gate.clear()
                    replica.llm.die()

    with pytest.raises(anthropic.APIStatusError) as caught:
        await read()
    assert "message_start" in seen
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "api_error"
    await replica.idle()


async def test_client_that_leaves_ends_the_request(
    replica: Replica, claude: anthropic.AsyncAnthropic
) -> None:
    async with claude.messages.stream(model="first", max_tokens=30, messages=HI) as stream:
        async for event in stream:
            replica.llm.gate.clear()
            if event.type == "content_block_delta":
                break

    await replica.idle()
    assert len(replica.llm.aborted) == 1
