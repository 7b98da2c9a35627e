"""Formats that force or pin calls: the grammar made of them admits what the parser reads."""

import json
import random
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tests.unit.server.parsers.support import (
    AT_BEGINNING,
    DISTINCT,
    NOW,
    TOOLS,
    WRITERS,
    Call,
    parse,
    tool,
)

from octavo_protocol.errors import ValidationError
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.server.tool_parsers import TOOL_PARSERS
from octavo_runtime.structured_outputs.grammar import to_grammar

BYTES = LLTokenizer("byte")
PARIS: Call = ("get_weather", {"city": "Paris", "days": 3, "place": {"lat": 1.5}})
NOON: Call = ("time.now", {})
ANY_ARGUMENTS: Call = ("time.now", {"zone": "UTC"})


def matcher_of(format: dict[str, Any] | None) -> LLMatcher:
    assert format is not None
    tag = json.dumps({"type": "structural_tag", "format": format})
    matcher = LLMatcher(BYTES, to_grammar(StructuredOutputsParams(structural_tag=tag), {}))
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def admits(format: dict[str, Any] | None, text: str) -> bool:
    """Whether `text` is a whole output under `format`."""
    matcher = matcher_of(format)
    tokens = BYTES.tokenize_bytes(text.encode())
    return bool(matcher.validate_tokens(tokens) == len(tokens)) and bool(
        matcher.consume_tokens(tokens) and matcher.is_accepting()
    )


def write(name: str, *calls: Call) -> str:
    """Calls as a model writes them that is held to JSON values."""
    text = WRITERS[name](list(calls))
    return text.replace("'", '"') if "pythonic" in name else text


@pytest.mark.parametrize("name", DISTINCT)
def test_forced_calls_are_of_the_given_tools(name: str) -> None:
    parser = TOOL_PARSERS[name]
    several = parser.forced_format(TOOLS, parallel=True)
    single = parser.forced_format(TOOLS, parallel=False)
    named = parser.forced_format([NOW], parallel=False)
    for calls in ([PARIS], [NOON], [ANY_ARGUMENTS], [PARIS, NOON], [NOON, PARIS, PARIS]):
        text = write(name, *calls)
        assert admits(several, text)
        assert admits(single, text) == (len(calls) == 1)
        assert admits(named, text) == (len(calls) == 1 and calls[0][0] == "time.now")
        content, found = parse(name, text)
        assert (content, [(called, json.loads(args)) for called, args in found]) == ("", calls)


@pytest.mark.parametrize("name", DISTINCT)
def test_forced_calls_follow_the_schema(name: str) -> None:
    format = TOOL_PARSERS[name].forced_format(TOOLS, parallel=True)
    assert admits(format, write(name, ("get_weather", {"city": "P", "scale": "celsius"})))
    assert not admits(format, write(name, ("get_weather", {"days": 3})))
    assert not admits(format, write(name, ("get_weather", {"city": "P", "days": [3]})))
    assert not admits(format, write(name, ("get_weather", {"city": "P", "scale": "kelvin"})))
    assert not admits(format, write(name, ("get_lost", {})))
    assert not admits(format, "No.")
    assert not admits(format, "")


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize(
    "schema", [{"properties": []}, {"properties": {"a": 1}}, {"properties": {}, "required": "a"}]
)
def test_a_tool_with_an_impossible_schema_is_refused(name: str, schema: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"tool 'f': `(properties|required)` must") as failure:
        TOOL_PARSERS[name].forced_format([tool("f", schema)], parallel=True)
    assert failure.value.parameter == "tools"


@pytest.mark.parametrize("name", DISTINCT)
def test_a_property_may_be_anything(name: str) -> None:
    anything = tool("f", {"properties": {"a": True}})
    format = TOOL_PARSERS[name].forced_format([anything], parallel=False)
    assert admits(format, write(name, ("f", {"a": 3})))


def test_old_mistral_models_may_force_calls_in_a_list() -> None:
    format = TOOL_PARSERS["mistral"].forced_format(TOOLS, parallel=True)
    assert admits(format, '[TOOL_CALLS][{"name": "time.now", "arguments": {}}]')


CLOSED = tool(
    "set_light",
    {
        "type": "object",
        "properties": {
            "level": {"type": "integer", "minimum": 0, "maximum": 9},
            "color": {"enum": ["red", "blue"]},
            "on": {"type": "boolean"},
        },
        "required": ["level"],
        "additionalProperties": False,
    },
    strict=True,
)
ALL_OPTIONAL = tool("blink", {**(CLOSED.function.parameters or {}), "required": []}, strict=True)


@pytest.mark.parametrize("name", DISTINCT)
def test_whatever_a_forced_format_admits_is_read_as_calls(name: str) -> None:
    """Random walks through the grammar, over schemas without free text."""
    tools = [CLOSED, ALL_OPTIONAL]
    start = matcher_of(TOOL_PARSERS[name].forced_format(tools, parallel=False))
    for seed in range(30):
        content, calls = parse(name, random_output(start.deep_copy(), seed), tools=tools)
        assert content == ""
        ((called, arguments),) = calls
        assert called in ("set_light", "blink")
        values = json.loads(arguments)
        assert set(values) <= {"level", "color", "on"}
        assert called == "blink" or "level" in values
        assert values.get("level", 0) in range(10)
        assert values.get("color", "red") in ("red", "blue")
        assert values.get("on", True) in (True, False)


def random_output(matcher: LLMatcher, seed: int) -> str:
    """A whole output, one allowed byte after the other; white space only where it must be."""
    chance = random.Random(seed)
    output = bytearray()
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(256) if mask[token // 8] >> token % 8 & 1]
        if not allowed or (matcher.is_accepting() and chance.random() < 0.5):
            break
        dense = [token for token in allowed if token not in b" \t\r\n"]
        token = chance.choice(dense or allowed)
        matcher.consume_token(token)
        output.append(token)
    assert matcher.is_accepting()
    return output.decode()


@pytest.mark.parametrize("name", DISTINCT)
def test_without_strict_tools_nothing_is_pinned(name: str) -> None:
    assert TOOL_PARSERS[name].strict_format(TOOLS) is None


@pytest.mark.parametrize("name", DISTINCT)
def test_strict_calls_follow_the_schema_amid_free_text(name: str) -> None:
    format = TOOL_PARSERS[name].strict_format([CLOSED, NOW])
    before = "" if name in AT_BEGINNING else "I do it.\n"
    assert admits(format, "Just text; no call.")
    assert admits(format, "")
    assert admits(format, before + write(name, ("set_light", {"level": 3})))
    assert admits(format, before + write(name, ("time.now", {"zone": "UTC"})))
    assert admits(format, write(name, ("set_light", {"level": 3}), ("time.now", {"zone": "UTC"})))
    assert not admits(format, before + write(name, ("set_light", {"level": 11})))
    assert not admits(format, before + write(name, ("set_light", {})))
