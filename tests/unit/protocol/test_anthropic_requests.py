"""/v1/messages as a chat request: content blocks, tools, thinking, and what is refused."""

from typing import Any

import msgspec
import pytest
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.anthropic import CountTokensRequest, MessagesRequest
from octavo_protocol.anthropic.answers import error_event
from octavo_protocol.anthropic.requests import _HARMLESS, _REFUSED
from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatCompletionRequest

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
ADD = {"name": "add", "description": "Adds", "input_schema": SCHEMA}
CHAT_ADD = {
    "type": "function",
    "function": {"name": "add", "description": "Adds", "parameters": SCHEMA},
}
NAMES = {f"x{index}": None for index in range(1000)}


def parsed(**fields: Any) -> MessagesRequest:
    body = {"max_tokens": 10, "messages": [HI]} | fields
    return parse_body(msgspec.json.encode(body), MessagesRequest)


def chat(**fields: Any) -> dict[str, Any]:
    """The fields of the chat request that differ from those of an ordinary one."""
    plain = ChatCompletionRequest.model_validate({"messages": [HI], "max_tokens": 10})
    given = parsed(**fields).to_chat().model_dump(exclude_none=True)
    usual = plain.model_dump(exclude_none=True)
    return {name: value for name, value in given.items() if usual.get(name) != value}


def messages(*given: Any, **fields: Any) -> list[dict[str, Any]]:
    request = parsed(messages=list(given), **fields).to_chat()
    return [message.as_template_input() for message in request.messages]


def refusal(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parsed(**fields).to_chat()
    return caught.value


def test_text_is_a_message() -> None:
    assert chat() == {}


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be kind", "Be kind"),
        (
            [
                {"type": "text", "text": "Be kind", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "and brief"},
            ],
            "Be kind\nand brief",
        ),
    ],
)
def test_system_comes_first(system: Any, content: str) -> None:
    assert messages(HI, system=system) == [{"role": "system", "content": content}, HI]
    assert messages(HI, system="") == [HI]


def test_blocks_of_a_conversation_with_tools() -> None:
    assistant = [
        {"type": "thinking", "thinking": "I need a tool", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Wait"},
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
    ]
    user = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "3"}]},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
        {"type": "text", "text": "and now?"},
    ]
    call = {"name": "add", "arguments": {"a": 1}}

    assert messages(
        HI, {"role": "assistant", "content": assistant}, {"role": "user", "content": user}
    ) == [
        HI,
        {
            "role": "assistant",
            "content": "Wait",
            "reasoning": "I need a tool",
            "reasoning_content": "I need a tool",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "3"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": "and now?"},
    ]


@pytest.mark.parametrize(
    ("content", "continues"),
    [
        ("I say", True),
        ([{"type": "text", "text": "I say"}], True),
        ([{"type": "tool_use", "id": "t", "name": "f", "input": {}}], False),
    ],
)
def test_answer_that_is_begun_is_continued(content: Any, continues: bool) -> None:
    request = parsed(messages=[HI, {"role": "assistant", "content": content}]).to_chat()

    assert request.continue_final_message is continues
    assert request.add_generation_prompt is not continues


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"tools": []}, {}),
        ({"tools": [ADD]}, {"tools": [CHAT_ADD]}),
        (
            {"tools": [ADD | {"type": "custom"}], "tool_choice": {"type": "auto"}},
            {"tools": [CHAT_ADD], "tool_choice": "auto"},
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tools": [CHAT_ADD], "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "tool", "name": "add"}},
            {
                "tools": [CHAT_ADD],
                "tool_choice": {"type": "function", "function": {"name": "add"}},
            },
        ),
        (
            {"tools": [ADD], "tool_choice": {"type": "none"}},
            {"tools": [CHAT_ADD], "tool_choice": "none"},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
            {
                "max_tokens": 2000,
                "thinking_token_budget": 1024,
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
            },
        ),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": 1}},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
    ],
)
def test_field_of_another_form(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**fields) == expected


def test_schema_of_the_output_constrains_the_answer() -> None:
    shape = {"type": "json_schema", "schema": SCHEMA}
    params = parsed(output_config={"format": shape}).to_chat().response_format

    assert params is not None
    assert params.json_schema is not None
    assert params.json_schema.json_schema == SCHEMA


def test_shared_fields_are_those_of_chat() -> None:
    fields: dict[str, Any] = {
        "model": "m",
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "cache_salt": "s",
        "priority": 2,
        "request_id": "r",
        "vllm_xargs": {"b": 2},
    }
    assert chat(**fields) == fields


@pytest.mark.parametrize("name", sorted(_HARMLESS))
def test_field_without_effect_is_dropped(name: str) -> None:
    assert chat(**{name: "anything"}) == {}


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_field_that_is_not_served_is_refused_with_advice(name: str) -> None:
    assert refusal(**{name: "x"}).message == f"{name} is not supported: {_REFUSED[name][1]}"
    for neutral in _REFUSED[name][0]:
        assert chat(**{name: neutral}) == {}


def test_null_means_not_given() -> None:
    names = set(MessagesRequest.model_fields) - {"messages", "max_tokens"}

    assert parsed(**dict.fromkeys(names)) == parsed()


def test_counting_needs_no_limit() -> None:
    request = CountTokensRequest.model_validate({"messages": [HI], "system": "Be kind"})

    assert [message.text() for message in request.to_chat().messages] == ["Be kind", "hi"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role: Input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages.0.content.0: content blocks of type 'image' are not supported",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [{"type": "document"}],
                            }
                        ],
                    }
                ]
            },
            "messages.0.content.0.content.0: content blocks of type 'document' are not supported",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]},
            "messages.0.content.0: a content block of type 'tool_use' needs name",
        ),
        (
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            "tools.0: tools of type 'bash_20250124' are not supported",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice required needs tools"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice: type tool needs name"),
        (
            {"tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}},
            "tool_choice names 'sub', which is not among the tools",
        ),
        ({"thinking": {"type": "enabled"}}, "thinking: type enabled needs budget_tokens"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 10}},
            "thinking.budget_tokens: Input should be greater than or equal to 1024",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1024},
            "thinking.budget_tokens (1024) must be less than max_tokens (1024)",
        ),
        ({"max_token": 5}, "unknown field 'max_token'; did you mean max_tokens?"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields).message.startswith(message)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [None] * 1000},
        {"messages": [{"role": "user", "content": [None] * 1000}] * 1000},
        {"system": [None] * 1000},
        {"tools": [None] * 1000},
        {"stop_sequences": [None] * 1000},
        {"tool_choice": NAMES},
        NAMES,
    ],
)
def test_lists_of_nonsense_give_a_handful_of_complaints(fields: dict[str, Any]) -> None:
    with pytest.raises(PydanticValidationError) as caught:
        MessagesRequest.model_validate({"messages": [HI], "max_tokens": 5} | fields)

    assert caught.value.error_count() <= 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_anthropic_s_names(status: int, kind: str) -> None:
    assert msgspec.to_builtins(error_event(status, "no")) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
    }
