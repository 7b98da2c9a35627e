"""`StructuredOutputsParams`: one constraint, well-formed, and how a wrong one is refused."""

import json
from typing import Any

import msgspec
import pytest

from octavo_protocol.errors import ValidationError
from octavo_protocol.structured_outputs import StructuredOutputsParams, is_deeper

NAMES = "json, regex, choice, grammar, json_object, structural_tag"


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", {"type": "object"}),
        ("json", '{"type": "object"}'),
        ("json", "true"),
        ("json", nested(64)),
        ("regex", "[a-z]+"),
        ("choice", ["yes", "no"]),
        ("grammar", 'start: "a"'),
        ("json_object", True),
        ("structural_tag", json.dumps({"type": "structural_tag", "format": nested(70)})),
    ],
)
def test_one_constraint_is_taken_and_crosses_to_the_engine(kind: str, value: Any) -> None:
    params = StructuredOutputsParams(**{kind: value})

    assert params.kind == kind
    packed = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(packed, type=StructuredOutputsParams) == params


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, f"give exactly one of {NAMES}; got none"),
        ({"regex": "a", "choice": ["a"]}, f"give exactly one of {NAMES}; got regex, choice"),
        ({"json": 3}, "json must be a string, got int"),
        ({"json": " "}, "json must not be blank"),
        ({"json": dict}, "json must be a schema, not a class: give its model_json_schema()"),
        ({"json": "[]"}, "json must be a JSON object, got list"),
        ({"json": nested(65)}, "json is nested deeper than 64 levels"),
        ({"json": json.dumps(nested(65))}, "json is nested deeper than 64 levels"),
        ({"regex": ""}, "regex must not be blank"),
        ({"regex": "a\0"}, "regex must not contain NUL"),
        ({"choice": []}, "choice must be a non-empty list of strings"),
        ({"choice": "ab"}, "choice must be a non-empty list of strings"),
        ({"choice": ["a", 1]}, "choice must be a non-empty list of strings"),
        ({"grammar": "\n"}, "grammar must not be blank"),
        ({"json_object": False}, "json_object must be true; leave it out otherwise"),
        ({"structural_tag": ""}, "structural_tag must not be blank"),
        (
            {"structural_tag": json.dumps(nested(81))},
            "structural_tag is nested deeper than 80 levels",
        ),
        ({"regex": "a", "whitespace_pattern": ""}, "whitespace_pattern must not be blank"),
    ],
)
def test_malformed_constraint_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StructuredOutputsParams(**fields)

    assert caught.value.message == f"structured_outputs: {message}"
    assert caught.value.parameter == "structured_outputs"


@pytest.mark.parametrize("text", ["{", "[" * 10**6, "9" * 10**5])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="json is not valid JSON"):
        StructuredOutputsParams(json=text)


@pytest.mark.parametrize(
    ("value", "limit", "deeper"),
    [
        (1, 0, False),
        ({}, 0, False),
        ({"a": 1}, 0, False),
        ({"a": {}}, 0, True),
        ([[]], 0, True),
        ([[[1]], 2], 1, True),
        ([[[1]], 2], 2, False),
    ],
)
def test_depth_counts_lists_and_objects(value: Any, limit: int, deeper: bool) -> None:
    assert is_deeper(value, limit) is deeper
