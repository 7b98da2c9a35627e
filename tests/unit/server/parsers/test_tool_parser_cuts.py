"""However a text is cut, a parser finds the same; what is written as calls comes back as calls."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.parsers.support import (
    AT_BEGINNING,
    CUTS,
    DISTINCT,
    STRINGS,
    VALUES,
    WRITERS,
    Call,
    parse,
    pieces,
)

from octavo_runtime.server.tool_parsers import TOOL_PARSERS

IDENTIFIERS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
NAMES = IDENTIFIERS | st.sampled_from(["get_weather", "time.now", "a-b"])
# Plain text: what cannot be taken for the beginning of a marker, and no white space at its ends.
WORDS = st.text("abc é🙂.,", max_size=12).map(str.strip)
WITH_SCHEMA = {"glm45", "minimax_m2", "qwen3_coder", "qwen3_xml"}


@st.composite
def weather_arguments(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of get_weather, for notations that know types by the schema only."""
    return draw(
        st.fixed_dictionaries(
            {"city": STRINGS.filter(lambda text: "</" not in text and text.strip("\n") == text)},
            optional={
                "days": st.integers(),
                "scale": st.sampled_from(["celsius", "fahrenheit"]),
                "detailed": st.booleans() | st.none(),
                "place": st.fixed_dictionaries({"lat": st.floats(-90, 90)}),
                "tags": st.lists(st.text("ab\"' ", max_size=3), max_size=2),
            },
        )
    )


def calls_of(name: str) -> st.SearchStrategy[list[Call]]:
    if name in WITH_SCHEMA:
        one = st.tuples(st.just("get_weather"), weather_arguments())
    elif "pythonic" in name:
        keys = IDENTIFIERS.map(lambda key: f"k_{key}")  # never a keyword of Python
        one = st.tuples(NAMES, st.dictionaries(keys, VALUES, max_size=3))
    else:
        one = st.tuples(NAMES, st.dictionaries(STRINGS, VALUES, max_size=3))
    return st.lists(one, min_size=1, max_size=3)


@pytest.mark.parametrize("name", DISTINCT)
@given(data=st.data(), before=WORDS, after=WORDS, cuts=CUTS)
@settings(max_examples=60)
def test_calls_and_text_around_them_come_back(
    name: str, data: st.DataObject, before: str, after: str, cuts: list[int]
) -> None:
    calls = data.draw(calls_of(name))
    if name in AT_BEGINNING:
        before = ""
    content, found = parse(name, f"{before}\n{WRITERS[name](calls)}\n{after}", cuts)
    assert [(called, json.loads(arguments)) for called, arguments in found] == calls
    assert content.startswith(before)
    assert content.endswith(after)
    between = content[len(before) : len(content) - len(after)]
    assert between.strip("\n" if before and after else "") == ""


def fragments(name: str) -> st.SearchStrategy[str]:
    """Texts out of whole calls, their beginnings and ends, markers and noise."""
    call = WRITERS[name]([("get_weather", {"city": "Rome"}), ("time.now", {})])
    cut_call = st.tuples(st.integers(0, len(call)), st.integers(0, len(call))).map(
        lambda ends: call[min(ends) : max(ends)]
    )
    noise = st.text("{}[]()<>|\"\\': ,;=\n", max_size=4) | st.sampled_from(["name", "arguments"])
    markers = st.sampled_from([*TOOL_PARSERS[name].markers, call])
    return st.lists(cut_call | noise | markers | WORDS, max_size=8).map("".join)


@pytest.mark.parametrize("name", DISTINCT)
@given(data=st.data(), cuts=CUTS)
@settings(max_examples=120)
def test_cuts_never_change_what_is_found(name: str, data: st.DataObject, cuts: list[int]) -> None:
    text = data.draw(fragments(name))
    whole = parse(name, text)
    assert parse(name, text, cuts) == whole
    assert parse(name, text, range(len(text))) == whole
    if not whole[1]:
        assert whole[0] == text


@pytest.mark.parametrize("name", DISTINCT)
@given(text=st.text(max_size=40), cuts=CUTS)
@settings(max_examples=30)
def test_other_text_is_content_as_written(name: str, text: str, cuts: list[int]) -> None:
    assert parse(name, text, cuts) == (text, [])


LONG = 1_000_000


@pytest.mark.parametrize(
    "name", ["hermes", "jamba", "kimi_k2", "llama3_json", "mistral", "pythonic", "qwen3_coder"]
)
@pytest.mark.parametrize("shape", ["argument", "unfinished", "spaces", "calls", "markers"])
def test_a_megabyte_takes_linear_time(name: str, shape: str) -> None:
    """In quadratic time, this would take minutes."""
    call = WRITERS[name]([("get_weather", {"city": "@"})])
    text = {
        "argument": call.replace("@", "x" * LONG),
        "unfinished": call[: call.index("@")] + "x" * LONG,
        "spaces": " " * LONG,
        "calls": call * (LONG // len(call)),
        "markers": call[: call.index("get")] * (LONG // call.index("get")),
    }[shape]
    started = time.process_time()
    parser = TOOL_PARSERS[name]([])
    length = 0
    for piece in [*pieces(text, range(0, len(text), 8)), None]:
        parsed = parser.finish() if piece is None else parser.feed(piece)
        length += len(parsed.content) + sum(len(delta.arguments) for delta in parsed.calls)
    assert time.process_time() - started < 30
    assert length > 0 or shape == "markers"
