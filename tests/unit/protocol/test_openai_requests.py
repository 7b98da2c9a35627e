"""Requests as router and replicas parse them: what is taken, what is refused and how it is said."""

from typing import Any

import msgspec
import pytest
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol import openai
from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_protocol.sampling_params import SamplingParams

MESSAGES = [{"role": "user", "content": "hi"}]
NEUTRAL = [(name, value) for name, values in openai._NOT_YET.items() for value in values]


def parsed(kind: type[Any], **fields: Any) -> Any:
    base: dict[str, Any] = {}
    if kind is ChatCompletionRequest:
        base = {"messages": MESSAGES}
    elif kind is CompletionRequest:
        base = {"prompt": "hi"}
    return parse_body(msgspec.json.encode(base | fields), kind)


def refusal(kind: type[Any], **fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parsed(kind, **fields)
    return caught.value


def params_of(kind: type[Any], defaults: SamplingParams | None = None, **fields: Any) -> Any:
    return parsed(kind, **fields).sampling_params(defaults or SamplingParams(), max_tokens=7)


BOTH = pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])


@BOTH
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_token", "max_tokens"),
        ("temprature", "temperature"),
        ("stop_token_id", "stop_token_ids"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest_known_one(
    kind: type[Any], name: str, near: str
) -> None:
    assert refusal(kind, **{name: 1}).message == f"unknown field {name!r}; did you mean {near}?"


@BOTH
def test_unknown_field_like_no_other_is_refused_by_name(kind: type[Any]) -> None:
    assert refusal(kind, qqqqq=1).message == "unknown field 'qqqqq'"


@BOTH
@pytest.mark.parametrize("name", sorted(openai._HARMLESS))
def test_field_without_effect_is_dropped(kind: type[Any], name: str) -> None:
    parsed(kind, **{name: "anything"})


@BOTH
@pytest.mark.parametrize(("name", "value"), NEUTRAL)
def test_field_that_is_not_served_yet_is_taken_at_its_neutral_values(
    kind: type[Any], name: str, value: Any
) -> None:
    parsed(kind, **{name: value})


@BOTH
@pytest.mark.parametrize("name", sorted(openai._NOT_YET))
def test_field_that_is_not_served_yet_is_refused_otherwise(kind: type[Any], name: str) -> None:
    message = refusal(kind, **{name: "something else"}).message

    assert message == f"{name} is not supported by this server yet; leave it out"


@BOTH
def test_null_means_not_given(kind: type[Any]) -> None:
    names = set(kind.model_fields) - {"messages", "prompt"}

    assert parsed(kind, **dict.fromkeys(names)) == parsed(kind)


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream_options": {}}, "stream_options is only allowed with stream=true"),
        ({"stop": list("abcde")}, "stop takes at most 4 strings, got 5"),
    ],
)
def test_fields_in_conflict(kind: type[Any], fields: dict[str, Any], message: str) -> None:
    assert refusal(kind, **fields).message == message


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ChatCompletionRequest, {"top_logprobs": 3}, "top_logprobs needs logprobs=true"),
        (
            ChatCompletionRequest,
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs must be between 0 and 20, got 21",
        ),
        (
            ChatCompletionRequest,
            {"continue_final_message": True},
            "continue_final_message=true needs add_generation_prompt=false",
        ),
        (ChatCompletionRequest, {"echo": True}, "echo is not supported for chat; leave it out"),
        (CompletionRequest, {"logprobs": 21}, "logprobs must be between 0 and 20, got 21"),
        (CompletionRequest, {"logprobs": -1}, "logprobs must be between 0 and 20, got -1"),
        (
            CompletionRequest,
            {"echo": True, "logprobs": 1},
            "echo together with logprobs is not supported yet",
        ),
        (
            TokenizeRequest,
            {"messages": MESSAGES, "continue_final_message": True},
            "continue_final_message=true needs add_generation_prompt=false",
        ),
        (TokenizeRequest, {}, "give either prompt or messages"),
        (TokenizeRequest, {"prompt": "a", "messages": MESSAGES}, "give either prompt or messages"),
    ],
)
def test_rules_of_one_route(kind: type[Any], fields: dict[str, Any], message: str) -> None:
    assert refusal(kind, **fields).message == message


@pytest.mark.parametrize(
    ("kind", "fields", "message", "parameter"),
    [
        (ChatCompletionRequest, {"messages": None}, "messages: Field required", "messages"),
        (
            CompletionRequest,
            {"temperature": "hot"},
            "temperature: Input should be a valid number, unable to parse string as a number "
            "(got 'hot')",
            "temperature",
        ),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user"}, {"role": "boss"}]},
            "messages.1.role: Input should be 'system', 'developer', 'user', 'assistant' or 'tool' "
            "(got 'boss')",
            "messages.1.role",
        ),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "image": 1}]},
            "messages.0.image: Extra inputs are not permitted (got 1)",
            "messages.0.image",
        ),
        (DetokenizeRequest, {}, "tokens: Field required", "tokens"),
    ],
)
def test_wrong_type_is_refused_by_its_path(
    kind: type[Any], fields: dict[str, Any], message: str, parameter: str
) -> None:
    error = refusal(kind, **fields)

    assert (error.message, error.parameter) == (message, parameter)


def test_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(CompletionRequest, n="x" * 1000).message) < 200


@pytest.mark.parametrize("raw", [b"[]", b'"a"', b"3", b"null", b"true"])
def test_body_must_be_an_object(raw: bytes) -> None:
    with pytest.raises(ValidationError, match="the body must be a JSON object"):
        parse_body(raw, CompletionRequest)


def test_broken_bodies_are_refused() -> None:
    for raw, message in (
        (b"{", "the body is not valid JSON"),
        (b'{"prompt": "\xff"}', "the body is not valid"),
        (b"[" * 100_000, "the body is"),
    ):
        with pytest.raises(ValidationError, match=message):
            parse_body(raw, CompletionRequest)


# -- to sampling parameters ------------------------------------------------------------------------


@BOTH
def test_fields_become_sampling_parameters(kind: type[Any]) -> None:
    fields: dict[str, Any] = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.1,
        "seed": 3,
        "stop": ["a"],
        "stop_token_ids": [4],
        "ignore_eos": True,
        "max_tokens": 5,
        "min_tokens": 2,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    assert params_of(kind, **fields) == SamplingParams(**fields)


@BOTH
def test_model_s_defaults_hold_where_the_request_says_nothing(kind: type[Any]) -> None:
    defaults = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.01)
    params = params_of(kind, defaults, top_k=3)

    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 3, 0.01)
    assert defaults.top_k == 20


@BOTH
def test_max_tokens_of_the_server_holds_where_the_request_names_none(kind: type[Any]) -> None:
    assert params_of(kind).max_tokens == 7
    assert params_of(kind, max_tokens=3).max_tokens == 3


def test_max_completion_tokens_wins() -> None:
    assert params_of(ChatCompletionRequest, max_tokens=3, max_completion_tokens=4).max_tokens == 4


@pytest.mark.parametrize("value", [0, -1])
def test_token_limits_below_one_are_refused_by_their_own_name(value: int) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        fields: dict[str, Any] = {name: value}
        with pytest.raises(ValidationError) as caught:
            params_of(ChatCompletionRequest, **fields)
        assert caught.value.message == f"{name} must be at least 1, got {value}"
        assert caught.value.parameter == name


def test_logprobs_of_chat_and_completion() -> None:
    assert params_of(ChatCompletionRequest).logprobs is None
    assert params_of(ChatCompletionRequest, logprobs=True).logprobs == 0
    assert params_of(ChatCompletionRequest, logprobs=True, top_logprobs=4).logprobs == 4
    assert params_of(CompletionRequest).logprobs is None
    assert params_of(CompletionRequest, logprobs=0).logprobs == 0
    assert params_of(CompletionRequest, logprobs=4).logprobs == 4


@BOTH
@pytest.mark.parametrize("priority", [2**63, -(2**63) - 1])
def test_priority_is_a_64_bit_integer(kind: type[Any], priority: int) -> None:
    with pytest.raises(ValueError):
        kind.model_validate({"prompt": "a", "messages": MESSAGES, "priority": priority})


# -- prompts and messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ("", [""]),
    ],
)
def test_prompt_forms(prompt: Any, prompts: list[Any]) -> None:
    assert parsed(CompletionRequest, prompt=prompt).prompts() == prompts


def test_empty_list_of_prompts_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        parsed(CompletionRequest, prompt=[]).prompts()

    assert (caught.value.message, caught.value.parameter) == ("prompt cannot be empty", "prompt")


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "user", "content": "a"}, {"role": "user", "content": "a"}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "user", "content": "a\nb"},
        ),
        (
            {"role": "tool", "content": "4", "name": "add", "tool_call_id": "x"},
            {"role": "tool", "content": "4", "name": "add", "tool_call_id": "x"},
        ),
    ],
)
def test_messages_as_templates_get_them(message: Any, rendered: Any) -> None:
    assert ChatMessage.model_validate(message).as_template_input() == rendered


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (CompletionRequest, {"prompt": [None] * 1000}),
        (CompletionRequest, {"prompt": [[None] * 1000] * 1000}),
        (CompletionRequest, {"prompt": [1] * 1000 + ["a"]}),
        (ChatCompletionRequest, {"messages": [None] * 1000}),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "user", "content": [None] * 1000}] * 1000},
        ),
        (ChatCompletionRequest, {"messages": MESSAGES, "stop": [None] * 1000}),
        (ChatCompletionRequest, {"messages": MESSAGES, "stop_token_ids": [None] * 1000}),
        (TokenizeRequest, {"messages": [None] * 1000}),
        (DetokenizeRequest, {"tokens": [None] * 1000}),
    ],
)
def test_lists_of_nonsense_give_a_handful_of_complaints(
    kind: type[Any], fields: dict[str, Any]
) -> None:
    """One for each item would let a small body hold the server for long, and much memory."""
    with pytest.raises(PydanticValidationError) as caught:
        kind.model_validate(fields)

    assert caught.value.error_count() <= 4
