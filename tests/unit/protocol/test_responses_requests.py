"""/v1/responses as a chat request: items, tools, formats, and what is refused."""

from typing import Any

import msgspec
import pytest
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest, ResponsesRequest
from octavo_protocol.openai.responses import _HARMLESS, _REFUSED, is_store_enabled

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = {"type": "function", "name": "add", "description": "Adds", "parameters": SCHEMA}
SUB = {"type": "function", "name": "sub"}
CHAT_ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds", "parameters": SCHEMA},
}
NAMES = {f"x{index}": None for index in range(1000)}


def parsed(**fields: Any) -> ResponsesRequest:
    return parse_body(msgspec.json.encode({"input": "hi"} | fields), ResponsesRequest)


def chat(**fields: Any) -> dict[str, Any]:
    """The fields of the chat request that differ from those of an ordinary one."""
    request = parsed(**fields).to_chat()
    plain = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    given = request.model_dump(exclude_none=True)
    usual = plain.model_dump(exclude_none=True)
    return {name: value for name, value in given.items() if usual.get(name) != value}


def refusal(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parsed(**fields).to_chat()
    return caught.value


def messages(items: Any, **fields: Any) -> list[dict[str, Any]]:
    chat_request = parsed(input=items, **fields).to_chat()
    return [message.as_template_input() for message in chat_request.messages]


def test_text_is_one_message_of_the_user() -> None:
    assert chat() == {}


def test_instructions_are_the_system_s() -> None:
    assert messages("hi", instructions="Be kind") == [
        {"role": "system", "content": "Be kind"},
        {"role": "user", "content": "hi"},
    ]


def test_one_turn_of_the_assistant_is_one_message() -> None:
    """Reasoning, text and calls are items of their own, also those that an answer gave."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "1+2, 3-4?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "I need tools"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Wait", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "sub", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "-1"}],
        },
        {"type": "message", "role": "assistant", "content": "3 and -1"},
    ]

    def call(name: str, identifier: str, arguments: Any) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": identifier, "type": "function", "function": function}

    assert messages(items) == [
        {"role": "user", "content": "1+2, 3-4?"},
        {
            "role": "assistant",
            "content": "Wait",
            "reasoning": "I need tools",
            "reasoning_content": "I need tools",
            "tool_calls": [call("add", "c1", {"a": 1}), call("sub", "c2", {})],
        },
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "tool", "content": "-1", "tool_call_id": "c2"},
        {"role": "assistant", "content": "3 and -1"},
    ]


def test_two_answers_in_a_row_stay_two() -> None:
    said = [{"role": "assistant", "content": text} for text in ("a", "b")]
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}

    assert messages([said[0], said[1], thought, said[0]]) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": "a", "reasoning": "hm", "reasoning_content": "hm"},
    ]


def test_stored_conversation_comes_between_instructions_and_input() -> None:
    earlier = parsed(input=[{"role": "user", "content": "before"}]).items

    request = parsed(instructions="Be kind").to_chat(earlier)

    assert [message.text() for message in request.messages] == ["Be kind", "before", "hi"]


def test_shared_fields_are_those_of_chat() -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
        "seed": 3,
        "stop": ["x"],
        "stop_token_ids": [5],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "logit_bias": {"5": 1.0},
        "cache_salt": "s",
        "priority": 2,
        "request_id": "r",
        "include_reasoning": False,
        "chat_template_kwargs": {"a": 1},
        "vllm_xargs": {"b": 2},
        "parallel_tool_calls": False,
    }
    assert chat(**fields) == fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"truncation": "auto"}, {"truncate_prompt_tokens": -1}),
        ({"truncation": "disabled"}, {}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"top_logprobs": 3}, {}),
        ({"include": ["reasoning.encrypted_content"]}, {}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        (
            {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
            {"logprobs": True, "top_logprobs": 3},
        ),
        ({"tools": []}, {}),
        ({"tools": [ADD]}, {"tools": [CHAT_ADD]}),
        ({"tools": [ADD], "tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tools": [ADD, SUB], "tool_choice": {"type": "function", "name": "add"}},
            {"tool_choice": {"type": "function", "function": {"name": "add"}}},
        ),
        (
            {
                "tools": [ADD, SUB],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "add"}],
                },
            },
            {"tools": [CHAT_ADD], "tool_choice": "required"},
        ),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"type": "text"}),
        ({"text": {"format": {"type": "json_object"}}}, {"type": "json_object"}),
    ],
)
def test_field_of_another_form(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    given = chat(**fields)

    if "text" in fields:
        assert given == {"response_format": expected}
    else:
        assert {name: given[name] for name in expected} == expected
        assert set(given) - {"tools"} == set(expected) - {"tools"}


def test_schema_of_the_text_s_format_constrains_the_answer() -> None:
    shape = {"type": "json_schema", "name": "point", "schema": SCHEMA, "strict": True}

    given = chat(text={"format": shape})["response_format"]

    assert given["json_schema"] == {"name": "point", "json_schema": SCHEMA, "strict": True}


@pytest.mark.parametrize("name", sorted(_HARMLESS))
def test_field_without_effect_is_dropped(name: str) -> None:
    assert chat(**{name: "anything"}) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"user": "u"},
        {"store": False},
        {"service_tier": "auto"},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"max_tool_calls": 3},
        *({name: value} for name, (values, _) in _REFUSED.items() for value in values),
    ],
)
def test_field_that_asks_for_nothing_changes_nothing(fields: dict[str, Any]) -> None:
    assert chat(**fields) == {}


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_field_that_is_not_served_is_refused_with_advice(name: str) -> None:
    message = refusal(**{name: "something"}).message

    assert message == f"{name} is not supported: {_REFUSED[name][1]}"


def test_null_means_not_given() -> None:
    names = set(ResponsesRequest.model_fields) - {"input"}

    assert parsed(**dict.fromkeys(names)) == parsed()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": None}, "input: Field required"),
        ({"input": ""}, "input must not be empty"),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            "input.0: input items of type 'item_r",
        ),
        ({"input": [{"role": "user"}]}, "input.0: an input item of type 'message' needs content"),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input.0: an input item of type 'function_call' needs call_id",
        ),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0: tools of type 'mcp' are not"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools.0: tools of type 'custom' are not"),
        ({"tools": [{"type": "function"}]}, "tools.0: a function needs a name"),
        ({"tools": [ADD, ADD]}, "tools: every function needs a name of its own"),
        (
            {"tools": [{"type": "function", "name": "a b"}]},
            "name: a function name has 1 to 128 letters",
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}},
            "tool_choice names 'sub', which is not among the tools",
        ),
        (
            {
                "tools": [ADD],
                "tool_choice": {
                    "type": "allowed_tools",
                    "tools": [{"type": "function", "name": "sub"}],
                },
            },
            "tool_choice allows 'sub', which is not among the tools",
        ),
        ({"include": ["nothing"]}, "include: there is no 'nothing'"),
        (
            {"text": {"format": {"type": "json_schema"}}},
            "text.format: type json_schema needs schema",
        ),
        (
            {"text": {"format": {"type": "text"}}, "structured_outputs": {"regex": "a"}},
            "text.format and structured_outputs: give only one",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": 5}, "unknown field 'max_tokens'"),
        ({"messages": []}, "unknown field 'messages'"),
        ({"stop": list("abcde")}, "stop takes at most 4 strings, got 5"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields).message.startswith(message)


def test_image_is_refused() -> None:
    with pytest.raises(ValidationError, match="this model takes text only"):
        messages([{"role": "user", "content": [{"type": "input_image"}]}])


@pytest.mark.parametrize(
    "fields",
    [
        {"input": [None] * 1000},
        {"input": [{"role": "user", "content": [None] * 1000}] * 1000},
        {"tools": [None] * 1000},
        {"include": [None] * 1000},
        {"text": NAMES},
        {"tool_choice": NAMES},
        {"tool_choice": {"type": "allowed_tools", "tools": [None] * 1000}},
        NAMES,
    ],
)
def test_lists_of_nonsense_give_a_handful_of_complaints(fields: dict[str, Any]) -> None:
    with pytest.raises(PydanticValidationError) as caught:
        ResponsesRequest.model_validate({"input": "hi"} | fields)

    assert caught.value.error_count() <= 8


@pytest.mark.parametrize(
    ("value", "enabled"), [(None, False), ("", False), ("0", False), ("1", True), ("true", True)]
)
def test_storage_is_off_unless_the_environment_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, value: str | None, enabled: bool
) -> None:
    monkeypatch.delenv("VLLM_ENABLE_RESPONSES_API_STORE", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_ENABLE_RESPONSES_API_STORE", value)

    assert is_store_enabled() is enabled
