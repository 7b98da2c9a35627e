"""Requests as router and replicas parse them: what is taken, what is refused and how it is said."""

import json
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.asgi import parse_body
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_protocol.openai.base import _HARMLESS, _REFUSED
from octavo_protocol.sampling_params import RepetitionDetectionParams, SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams

MESSAGES = [{"role": "user", "content": "hi"}]
NEUTRAL = [(name, value) for name, (values, _) in _REFUSED.items() for value in values]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "default": None}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}


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


SALT = "cache_salt takes at most 128 characters, none of them '@', '/', '\\' or NUL"
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
@pytest.mark.parametrize("name", sorted(_HARMLESS))
def test_field_without_effect_is_dropped(kind: type[Any], name: str) -> None:
    parsed(kind, **{name: "anything"})


@BOTH
@pytest.mark.parametrize(("name", "value"), NEUTRAL)
def test_field_that_is_not_honoured_is_taken_where_it_asks_for_nothing(
    kind: type[Any], name: str, value: Any
) -> None:
    parsed(kind, **{name: value})


@BOTH
@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_field_that_is_not_honoured_is_refused_otherwise_with_advice(
    kind: type[Any], name: str
) -> None:
    message = refusal(kind, **{name: "something else"}).message

    assert message == f"{name} is not supported: {_REFUSED[name][1]}"


@BOTH
def test_best_of_equal_to_n_asks_for_nothing(kind: type[Any]) -> None:
    assert parsed(kind, n=3, best_of=3) == parsed(kind, n=3)
    assert refusal(kind, n=2, best_of=3).message.startswith("best_of is not supported: ")


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
        (
            {"stream": True, "prompt_logprobs": 1},
            "prompt_logprobs is not allowed with stream=true",
        ),
        (
            {"stream": True, "use_beam_search": True},
            "use_beam_search is not allowed with stream=true",
        ),
        ({"cache_salt": "a@b"}, SALT),
        ({"cache_salt": "a" * 129}, SALT),
        (
            {"guided_json": SCHEMA, "structured_outputs": {"regex": "a"}},
            "guided_json is the old form of structured_outputs: give only one",
        ),
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
            {"logprobs": True, "top_logprobs": -2},
            "top_logprobs must be at least 0, or -1 for the whole vocabulary, got -2",
        ),
        (
            ChatCompletionRequest,
            {"continue_final_message": True},
            "continue_final_message=true needs add_generation_prompt=false",
        ),
        (ChatCompletionRequest, {"tools": []}, "tools must not be empty; leave it out"),
        (
            ChatCompletionRequest,
            {"tools": [TOOL, TOOL]},
            "tools: every function needs a name of its own",
        ),
        (
            ChatCompletionRequest,
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice names 'sub', which is not among the tools",
        ),
        (ChatCompletionRequest, {"tool_choice": "required"}, "tool_choice required needs tools"),
        (
            CompletionRequest,
            {"logprobs": -2},
            "logprobs must be at least -1 (the whole vocabulary), got -2",
        ),
        (
            CompletionRequest,
            {"suffix": "end"},
            "suffix is not supported: this model has no fill-in-the-middle format. Put the text "
            "before the gap into prompt and leave suffix out",
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
            {"messages": [{"role": "user"}, {"role": ""}]},
            "messages.1.role: String should have at least 1 character (got '')",
            "messages.1.role",
        ),
        (
            ChatCompletionRequest,
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools.0.function.name: a function name has 1 to 128 letters, digits, '_', '-' or '.' "
            "(got 'a b')",
            "tools.0.function.name",
        ),
        (
            ChatCompletionRequest,
            {"tools": [{"type": "function", "function": {"name": "a"}, "paremeters": {}}]},
            "tools.0: unknown field 'paremeters' (got {'type': 'function', 'function': {'name': "
            "'a'}, 'paremeters': {}})",
            "tools.0.paremeters",
        ),
        (
            CompletionRequest,
            {"logit_bias": {"5": "a"}},
            "logit_bias: the bias of token '5' must be a number (got {'5': 'a'})",
            "logit_bias",
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
        "spaces_between_special_tokens": False,
        "prompt_logprobs": 2,
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "thinking_token_budget": 8,
        "stream_interval": 3,
    }
    assert params_of(kind, **fields) == SamplingParams(**fields)


@BOTH
def test_fields_of_another_form_become_sampling_parameters(kind: type[Any]) -> None:
    params = params_of(
        kind,
        logit_bias={"5": 1.5, "6": -1000},
        vllm_xargs={"a": 1},
        repetition_detection={"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 3},
    )

    assert params.logit_bias == {5: 1.5, 6: -100.0}
    assert params.extra_args == {"a": 1}
    assert params.repetition_detection == RepetitionDetectionParams(4, 1, 3)


@BOTH
def test_beam_search_is_one_sample_of_the_engine(kind: type[Any]) -> None:
    assert params_of(kind, n=4, use_beam_search=True).n == 1


def test_ids_whose_logprobs_are_asked_for() -> None:
    params = params_of(CompletionRequest, logprobs=2, logprob_token_ids=[4, 5])

    assert (params.logprobs, params.logprob_token_ids) == (2, [4, 5])


@BOTH
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"json": SCHEMA},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}},
            {"json_object": True},
        ),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            {"regex": "a"},
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            {"json": SCHEMA, "disable_any_whitespace": True},
        ),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        (
            {"guided_json": SCHEMA, "guided_whitespace_pattern": " ?"},
            {"json": SCHEMA, "whitespace_pattern": " ?"},
        ),
        ({"guided_decoding_backend": "auto"}, None),
    ],
)
def test_shape_of_the_answer(kind: type[Any], fields: Any, expected: Any) -> None:
    wanted = None if expected is None else StructuredOutputsParams(**expected)

    assert params_of(kind, **fields).structured_outputs == wanted


def test_two_shapes_of_one_answer_are_refused() -> None:
    with pytest.raises(ValidationError, match="give only one") as caught:
        params_of(
            CompletionRequest,
            response_format={"type": "json_object"},
            structured_outputs={"regex": "a"},
        )

    assert caught.value.parameter == "structured_outputs"


def test_structural_tag_travels_as_json() -> None:
    for given in (
        {"type": "structural_tag", "format": {"type": "any_text"}},
        {
            "type": "structural_tag",
            "structures": [{"begin": "<a>", "schema": {"x": None}, "end": "</a>"}],
            "triggers": ["<a"],
        },
    ):
        params = params_of(ChatCompletionRequest, response_format=given).structured_outputs
        assert json.loads(params.structural_tag) == given


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"response_format": {"type": "json_schema"}},
            "response_format: type json_schema needs json_schema: {name, schema}",
        ),
        (
            {"response_format": {"type": "structural_tag", "triggers": []}},
            "response_format: type structural_tag needs format, or structures and triggers",
        ),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs: unknown field 'regexp'; "),
        ({"guided_choise": ["a"]}, "unknown field 'guided_choise'"),
    ],
)
def test_malformed_shape_is_refused(kind: type[Any], fields: Any, message: str) -> None:
    assert refusal(kind, **fields).message.startswith(message)


def test_error_of_a_shape_names_the_field_that_the_client_wrote() -> None:
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"a": deep}
    given: list[tuple[str, Any]] = [
        ("response_format", {"type": "json_schema", "json_schema": {"schema": deep}}),
        ("structured_outputs", {"json": deep}),
    ]
    for name, value in given:
        with pytest.raises(ValidationError) as caught:
            params_of(ChatCompletionRequest, **{name: value})
        assert caught.value.parameter == name
        assert "nested deeper than 64 levels" in caught.value.message


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
    assert params_of(CompletionRequest, logprobs=-1).logprobs == -1
    assert params_of(ChatCompletionRequest, logprobs=True, top_logprobs=-1).logprobs == -1
    assert params_of(ChatCompletionRequest, logprobs=True, top_logprobs=30).logprobs == 30


def test_no_token_may_be_asked_for_only_with_echo() -> None:
    request = parsed(CompletionRequest, echo=True, max_tokens=0)

    assert (request.requested_max_tokens(), request.generates) == (1, False)
    assert parsed(CompletionRequest).generates
    with pytest.raises(ValidationError, match="max_tokens must be at least 1"):
        params_of(CompletionRequest, max_tokens=0)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": 9}, [1, 2, 3, 4, 5]),
        ({"truncate_prompt_tokens": 2}, [4, 5]),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, [1, 2]),
        ({"truncate_prompt_tokens": 0}, []),
        ({"truncate_prompt_tokens": -1}, [3, 4, 5]),
    ],
)
def test_truncated_prompt(fields: dict[str, Any], left: list[int]) -> None:
    assert parsed(CompletionRequest, **fields).truncated([1, 2, 3, 4, 5], 4) == left


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, "none"),
        ({"tool_choice": "auto"}, "none"),
        ({"tools": [TOOL]}, "auto"),
        ({"tools": [TOOL], "tool_choice": "none"}, "none"),
        ({"tools": [TOOL], "tool_choice": "required"}, "required"),
    ],
)
def test_tool_choice_that_is_not_given(fields: dict[str, Any], choice: str) -> None:
    assert parsed(ChatCompletionRequest, **fields).effective_tool_choice == choice


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
        (
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "x", "function": {"name": "add", "arguments": '{"a": 1}'}},
                    {"type": "function", "function": {"name": "now", "arguments": ""}},
                    {"type": "function", "function": {"name": "now", "arguments": {"b": 2}}},
                ],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "x",
                        "type": "function",
                        "function": {"name": "add", "arguments": {"a": 1}},
                    },
                    {"type": "function", "function": {"name": "now", "arguments": {}}},
                    {"type": "function", "function": {"name": "now", "arguments": {"b": 2}}},
                ],
            },
        ),
        (
            {"role": "assistant", "content": "4", "reasoning_content": "2+2"},
            {"role": "assistant", "content": "4", "reasoning": "2+2", "reasoning_content": "2+2"},
        ),
        (
            {"role": "critic", "content": "bad", "mood": "low", "function_call": None},
            {"role": "critic", "content": "bad", "mood": "low"},
        ),
        (
            {"role": "user", "content": ["a", {"type": "input_text", "text": "b"}]},
            {"role": "user", "content": "a\nb"},
        ),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t"},
                    {"type": "refusal", "refusal": "r"},
                    {"type": "output_text", "text": "o"},
                ],
            },
            {"role": "assistant", "content": "t\nr\no"},
        ),
    ],
)
def test_messages_as_templates_get_them(message: Any, rendered: Any) -> None:
    assert ChatMessage.model_validate(message).as_template_input() == rendered


def test_templates_that_read_parts_get_each_part() -> None:
    message = ChatMessage.model_validate(
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}]}
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert message.as_template_input("openai") == {"role": "user", "content": parts}
    bare = ChatMessage.model_validate({"role": "user", "content": "a"})
    assert bare.as_template_input("openai") == {"role": "user", "content": parts[:1]}


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "this model takes text only; a message has a part of type 'image_url'",
        ),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "a message part of type 'text' needs 'text', a string",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "the arguments of the tool call 'f' are not valid JSON",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": "[" * 10**5}}],
            },
            "the arguments of the tool call 'f' are not valid JSON",
        ),
    ],
)
def test_message_that_no_template_can_read(message: Any, complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatMessage.model_validate(message).as_template_input()

    assert (caught.value.message, caught.value.parameter) == (complaint, "messages")


# -- hostile bodies --------------------------------------------------------------------------------


NAMES = {f"x{index}": None for index in range(1000)}


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
        (ChatCompletionRequest, {"messages": MESSAGES, "tools": [None] * 1000}),
        (ChatCompletionRequest, {"messages": MESSAGES, "tools": [NAMES] * 1000}),
        (ChatCompletionRequest, {"messages": MESSAGES, "documents": [None] * 1000}),
        (ChatCompletionRequest, {"messages": MESSAGES, "tool_choice": NAMES}),
        (ChatCompletionRequest, {"messages": MESSAGES, "logit_bias": NAMES}),
        (ChatCompletionRequest, {"messages": MESSAGES, "response_format": NAMES}),
        (
            ChatCompletionRequest,
            {
                "messages": MESSAGES,
                "response_format": {
                    "type": "structural_tag",
                    "structures": [None] * 1000,
                    "triggers": [None] * 1000,
                },
            },
        ),
        (
            ChatCompletionRequest,
            {"messages": MESSAGES, "structured_outputs": {"choice": [None] * 1000}},
        ),
        (ChatCompletionRequest, {"messages": MESSAGES, "stream": True, "stream_options": NAMES}),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "assistant", "tool_calls": [None] * 1000}] * 1000},
        ),
        (CompletionRequest, {"prompt": "a"} | NAMES),
        (TokenizeRequest, {"messages": [None] * 1000}),
        (TokenizeRequest, {"prompt": "a"} | NAMES),
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


@pytest.mark.parametrize(
    "field",
    [
        "messages",
        "tools",
        "response_format",
        "structured_outputs",
        "chat_template_kwargs",
        "documents",
        "vllm_xargs",
    ],
)
@pytest.mark.parametrize("pair", ["[]", ("{", "}")])
def test_deep_body_is_refused(field: str, pair: Any) -> None:
    depth = 500
    opened = "[" * depth + "]" * depth
    if pair != "[]":
        opened = '{"a":' * depth + "1" + "}" * depth
    raw = f'{{"messages": [{{"role": "user"}}], "{field}": {opened}}}'

    with pytest.raises(ValidationError) as caught:
        parse_body(raw.encode(), ChatCompletionRequest)
    assert caught.value.message == "the body is nested deeper than 128 levels"


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "a"}] * 2**16},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2**16}]},
    ],
)
def test_body_of_too_many_objects_is_refused(fields: Any) -> None:
    error = refusal(ChatCompletionRequest, **fields)

    assert error.message == "the body has more than 65536 objects and lists"


def test_token_ids_are_not_among_what_is_counted() -> None:
    prompts = [[5]] * 2**17

    assert parsed(CompletionRequest, prompt=prompts).prompt == prompts


def test_long_name_is_cut_in_the_message() -> None:
    assert len(refusal(CompletionRequest, **{"x" * 10**6: 1}).message) < 200
