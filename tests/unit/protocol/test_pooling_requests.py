"""Bodies of the pooling routes: every spelling that clients use, and what is said to the others."""

from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from octavo_protocol.asgi import parse_data
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import (
    ChatMessage,
    ClassifyRequest,
    EmbeddingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo_protocol.openai.pooling_answers import Embeddings, PoolingUsage, pieces
from octavo_protocol.pooling import PoolingParams

HI = {"role": "user", "content": "Hi"}


def refusal(kind: type[BaseModel], **fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        parse_data(fields, kind)
    return caught.value


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([HI], [[ChatMessage(role="user", content="Hi")]]),
        ([[HI], [HI]], [[ChatMessage(role="user", content="Hi")]] * 2),
    ],
)
def test_an_input_is_text_token_ids_or_a_conversation_or_several(given: Any, inputs: Any) -> None:
    assert parse_data({"input": given}, EmbeddingRequest).inputs() == inputs


def test_messages_are_one_input() -> None:
    [conversation] = parse_data({"messages": [HI]}, ClassifyRequest).inputs()

    assert conversation == [ChatMessage(role="user", content="Hi")]


def test_parameters_are_those_of_the_task() -> None:
    body = {"input": "a", "dimensions": 8, "use_activation": False}

    params = parse_data(body, EmbeddingRequest).params("embed")

    assert params == PoolingParams(task="embed", dimensions=8, use_activation=False)
    classes = parse_data({"input": "a"}, ClassifyRequest).params("classify")
    assert classes == PoolingParams(task="classify")


@pytest.mark.parametrize(
    ("fields", "parameter", "message"),
    [
        ({}, None, "either input or messages"),
        ({"input": "a", "messages": [HI]}, None, "either input or messages"),
        ({"input": []}, "input", "empty"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": [[1], []]}, "input", "empty"),
        ({"input": ["a"] * 16_385}, "input", "at most 16384"),
        ({"input": {"a": 1}}, "input", ""),
        ({"input": [1.5]}, "input.0", "valid string"),
        ({"input": ["a", 1]}, "input.1", "valid string"),
        ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64"),
        ({"input": "a", "embed_dtype": "int8"}, "embed_dtype", "float16"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"input": "a", "normalize": True}, "normalize", "use_activation"),
        ({"input": "a", "padding": "max_length"}, "padding", "do not depend"),
        ({"input": "a", "dimension": 3}, "dimension", "did you mean dimensions?"),
        ({"input": "a", "cache_salt": "@"}, "cache_salt", "128 characters"),
        (
            {"messages": [HI], "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "add_generation_prompt=false",
        ),
    ],
)
def test_a_wrong_embedding_request_is_told_what_to_write(
    fields: dict[str, Any], parameter: str | None, message: str
) -> None:
    error = refusal(EmbeddingRequest, **fields)

    assert message in error.message
    assert error.parameter == parameter


@pytest.mark.parametrize(("task", "advice"), [("score", "/score"), ("encode", "token_embed")])
def test_former_tasks_are_refused_with_what_to_write_instead(task: str, advice: str) -> None:
    error = refusal(PoolRequest, input="a", task=task)

    assert (error.parameter, advice in error.message) == ("task", True)


def test_fields_without_effect_are_accepted() -> None:
    parse_data({"input": "a", "user": "u", "padding": "do_not_pad"}, EmbeddingRequest)


@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
def test_a_score_request_has_two_sides_of_any_spelling(names: tuple[str, str]) -> None:
    request = parse_data({names[0]: "q", names[1]: ["a", "b"]}, ScoreRequest)

    assert request.sides() == (["q"], ["a", "b"])


def test_texts_may_come_in_parts_or_by_name() -> None:
    parts = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}

    request = parse_data({"query": {"text": "q"}, "documents": [parts, "c"]}, RerankRequest)

    assert request.sides() == (["q"], ["a\nb", "c"])


@pytest.mark.parametrize(
    ("fields", "parameter", "message"),
    [
        ({"queries": "q"}, None, "two sides: queries and documents; "),
        ({"queries": "q", "text_2": "a"}, None, "two sides"),
        ({"queries": "q", "documents": "a", "items": "a"}, None, "two sides"),
        ({"queries": ["a", "b"], "documents": ["c"]}, "queries", "got 2 and 1"),
        ({"queries": "q", "documents": []}, "documents", "empty"),
        ({"queries": "q", "documents": [{}]}, "documents.0", "valid string"),
        ({"queries": "q", "documents": ["a"], "max_tokens_per_doc": -1}, "max_tokens_per_doc", ""),
        ({"queries": "q", "documents": ["a"], "top_n": 1}, "top_n", "unknown field"),
    ],
)
def test_a_wrong_score_request_is_told_what_to_write(
    fields: dict[str, Any], parameter: str | None, message: str
) -> None:
    error = refusal(ScoreRequest, **fields)

    assert message in error.message
    assert error.parameter == parameter


def test_parts_that_are_no_text_are_refused() -> None:
    picture = {"content": [{"type": "image_url", "image_url": {"url": "data:"}}]}

    assert "text only" in refusal(RerankRequest, query="q", documents=[picture]).message


@pytest.mark.parametrize("items", [[], [b'{"index":0}'], [b'{"index":0}', b'{"index":1}']])
def test_an_answer_in_pieces_is_the_answer(items: list[bytes]) -> None:
    answer = Embeddings(id="embd-1", model='"data":[', created=1, data=[], usage=PoolingUsage(1, 1))

    decoded = msgspec.json.decode(b"".join(pieces(answer, items)))

    whole = msgspec.to_builtins(answer)
    assert decoded == whole | {"data": [msgspec.json.decode(item) for item in items]}
