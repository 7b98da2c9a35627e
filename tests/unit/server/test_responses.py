"""/v1/responses through OpenAI's own client: whole, streamed, parsed, with tools, kept."""

import json
from typing import Any

import openai
import pydantic
import pytest
from tests.unit.server.conftest import Replica

from octavo_runtime.server.options import ApiOptions
from octavo_runtime.server.reasoning_parsers import reasoning_parser
from octavo_runtime.server.tool_parsers import tool_parser

ADD: Any = {
    "type": "function",
    "name": "add",
    "description": "Adds",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    "strict": True,
}
CALL = '{"name": "add", "arguments": {"a": 1}}'


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
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")


@pytest.fixture
def replica_with_store(store: None, replica: Replica) -> Replica:
    return replica


async def test_text_is_answered_whole(replica: Replica) -> None:
    replica.llm.script = "Hello you"

    response = await replica.client.responses.create(
        model="first",
        input="hi",
        instructions="Be kind",
        metadata={"a": "b"},
        temperature=0.5,
        max_output_tokens=20,
    )

    assert response.output_text == "Hello you"
    assert (response.status, response.model, response.error) == ("completed", "first", None)
    assert response.id.startswith("resp_")
    assert response.instructions == "Be kind"
    assert (response.metadata, response.temperature) == ({"a": "b"}, 0.5)
    assert (response.max_output_tokens, response.top_p) == (20, 1.0)
    prompt = "system: Be kind\nuser: hi\nassistant:"
    assert response.usage is not None
    assert response.usage.to_dict() == {
        "input_tokens": len(prompt),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": len(prompt) + 10,
    }
    (message,) = response.output
    assert message.to_dict() == {
        "id": message.id,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Hello you", "annotations": [], "logprobs": []}
        ],
    }


async def test_answer_that_is_cut_is_incomplete(replica: Replica) -> None:
    response = await replica.client.responses.create(model="first", input="hi", max_output_tokens=3)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert [item.to_dict()["status"] for item in response.output] == ["incomplete"]


async def test_stream_is_named_events_in_order(replica: Replica) -> None:
    replica.llm.script = "ab"
    stream = await replica.client.responses.create(model="first", input="hi", stream=True)

    events = [event async for event in stream]

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))


async def test_stream_has_a_name_line_and_no_done_mark(replica: Replica) -> None:
    replica.llm.script = "a"
    answer = await replica.http.post("/v1/responses", json={"input": "hi", "stream": True})

    for frame in answer.text.strip().split("\n\n"):
        name, data = frame.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in answer.text


async def test_client_s_accumulator_ends_with_the_whole_answer(replica: Replica) -> None:
    replica.llm.script = "a small answer"

    async with replica.client.responses.stream(model="first", input="hi") as stream:
        texts = [
            event.delta async for event in stream if event.type == "response.output_text.delta"
        ]
        final = await stream.get_final_response()

    assert "".join(texts) == final.output_text == "a small answer"
    assert final.status == "completed"


async def test_answer_is_parsed_into_a_type(replica: Replica) -> None:
    class Point(pydantic.BaseModel):
        x: int

    replica.llm.script = '{"x": 3}'

    response = await replica.client.responses.parse(model="first", input="hi", text_format=Point)

    assert response.output_parsed == Point(x=3)
    params = replica.llm.requests[0].sampling
    assert params.structured_outputs is not None
    assert params.structured_outputs.json == {
        "properties": {"x": {"title": "X", "type": "integer"}},
        "required": ["x"],
        "title": "Point",
        "type": "object",
        "additionalProperties": False,
    }


async def test_log_probabilities_come_where_they_are_asked_for(replica: Replica) -> None:
    replica.llm.script = "ab"
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}

    response = await replica.client.responses.create(model="first", input="hi", **asked)

    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert [each.token for each in part.logprobs] == ["a", "b", "<eos>"]
    assert [len(each.top_logprobs) for each in part.logprobs] == [2, 2, 2]


async def test_forced_function_is_called_and_its_output_answered(replica: Replica) -> None:
    replica.llm.script = f"[{CALL}]"
    tools: Any = {"tools": [ADD], "tool_choice": "required"}
    first = await replica.client.responses.create(model="first", input="1?", **tools)

    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    assert (call.status, first.output_text) == ("completed", "")

    replica.llm.script = "one"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "1"}
    items: Any = [{"role": "user", "content": "1?"}, call, output]
    second = await replica.client.responses.create(model="first", input=items)

    assert second.output_text == "one"


async def test_streamed_function_call_has_its_own_events(replica: Replica) -> None:
    replica.llm.script = f"[{CALL}]"
    tools: Any = {"tools": [ADD], "tool_choice": "required"}

    async with replica.client.responses.stream(model="first", input="1?", **tools) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()

    assert kinds[2] == "response.output_item.added"
    assert set(kinds[3:-3]) == {"response.function_call_arguments.delta"}
    assert kinds[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    (call,) = final.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"a": 1}


async def test_reasoning_text_and_call_are_items_in_order(thinker: Replica) -> None:
    async with thinker.client.responses.stream(
        model="first", input="1?", tools=[ADD], max_output_tokens=90
    ) as stream:
        kinds = [event.type async for event in stream if event.type.endswith(".delta")]
        final = await stream.get_final_response()
    said: Any = final.output
    again = await thinker.client.responses.create(model="first", input=said)

    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    reasoning, _, call = [item.to_dict() for item in final.output]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert final.output_text == "Wait"
    assert (call["name"], json.loads(str(call["arguments"]))) == ("add", {"a": 1})
    assert list(dict.fromkeys(kinds)) == [
        "response.reasoning_text.delta",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
    ]
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens > 0
    assert again.status == "completed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"background": True}, "background is not supported: "),
        ({"previous_response_id": "resp_1"}, "this server keeps no responses: "),
        ({"tools": [{"type": "web_search"}]}, "tools.0: tools of type 'web_search' are not "),
        ({"input": []}, "input must not be empty"),
        ({"input": "x" * 100}, "the prompt has "),
        ({"model": "third"}, "the model 'third' does not exist"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_served_is_refused_before_anything_is_said(
    replica: Replica, fields: Any, message: str, stream: bool
) -> None:
    given = {"model": "first", "input": "hi", "stream": stream} | fields

    with pytest.raises(openai.APIStatusError) as caught:
        await replica.client.responses.create(**given)

    assert caught.value.status_code == (404 if "model" in fields else 400)
    assert message in caught.value.message
    assert replica.llm.num_unfinished == 0


async def test_engine_that_dies_ends_the_stream_with_a_failed_response(replica: Replica) -> None:
    stream = await replica.client.responses.create(model="first", input="hi", stream=True)
    kinds = []
    async for event in stream:
        kinds.append(event.type)
        if event.type == "response.output_text.delta" and replica.llm.is_healthy:
            replica.llm.gate.clear()
            replica.llm.die()
        last = event

    assert kinds[-1] == "response.failed"
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert last.response.error.code == "server_error"


async def test_kept_answer_is_read_again_and_continued(
    replica_with_store: Replica,
) -> None:
    replica = replica_with_store
    replica.llm.script = "one"
    first = await replica.client.responses.create(model="first", input="1")
    replica.llm.script = "two"

    again = await replica.client.responses.retrieve(first.id)
    second = await replica.client.responses.create(
        model="first", input="2", previous_response_id=first.id
    )

    assert again.output_text == "one"
    assert second.previous_response_id == first.id
    prompt = replica.llm.tokenizer.decode(replica.llm.requests[-1].prompt_token_ids)
    assert prompt == "user: 1\nassistant: one\nuser: 2\nassistant:"


async def test_only_what_was_to_be_kept_is(replica_with_store: Replica) -> None:
    replica = replica_with_store
    response = await replica.client.responses.create(model="first", input="1", store=False)

    with pytest.raises(openai.NotFoundError):
        await replica.client.responses.retrieve(response.id)


async def test_finished_answer_cannot_be_cancelled(replica_with_store: Replica) -> None:
    replica = replica_with_store
    response = await replica.client.responses.create(model="first", input="1")

    with pytest.raises(openai.BadRequestError, match="runs in the background"):
        await replica.client.responses.cancel(response.id)


async def test_without_storage_nothing_can_be_read_again(replica: Replica) -> None:
    response = await replica.client.responses.create(model="first", input="1")

    with pytest.raises(openai.BadRequestError, match="VLLM_ENABLE_RESPONSES_API_STORE=1"):
        await replica.client.responses.retrieve(response.id)
