"""Reasoning is told from content, however the text is cut."""

import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.parsers.support import CUTS, pieces

from octavo_protocol.errors import ConfigError
from octavo_runtime.server.reasoning_parsers import REASONING_PARSERS, reasoning_parser
from octavo_runtime.server.reasoning_parsers.marked import MarkedReasoningParser

CHAT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
DISTINCT = sorted({parser: name for name, parser in sorted(REASONING_PARSERS.items())}.values())


def split(name: str, prompt: str, text: str, cuts: Sequence[int] = ()) -> tuple[str, str]:
    parser = REASONING_PARSERS[name](prompt)
    assert parser.is_reasoning == parser.starts_in_reasoning
    parts = [*map(parser.feed, pieces(text, cuts)), parser.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def test_parsers_are_found_by_name() -> None:
    assert reasoning_parser("qwen3") is REASONING_PARSERS["qwen3"]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'qwen'; choose one of .*deepseek_r1.*qwen3") as failure:
        reasoning_parser("qwen")
    assert failure.value.parameter == "reasoning_parser"


@pytest.mark.parametrize(
    ("name", "prompt", "text", "reasoning", "content"),
    [
        pytest.param(
            "deepseek_r1",
            "<｜User｜>Hi<｜Assistant｜><think>\n",
            "Easy. 2 < 3\n\n</think>\n\nHello!\n",
            "Easy. 2 < 3",
            "Hello!\n",
            id="r1, opened by the prompt",
        ),
        pytest.param("deepseek_r1", CHAT, "Hm.</think>Yes", "Hm.", "Yes", id="r1, never opened"),
        pytest.param("deepseek_r1", CHAT, "Hm. No end </thi", "Hm. No end </thi", "", id="r1, cut"),
        pytest.param(
            "qwen3",
            CHAT,
            "<think>\nShort.\n</think>\n\nYes <think> or </think>.",
            "Short.",
            "Yes <think> or </think>.",
            id="qwen3, markers in the answer",
        ),
        pytest.param(
            "qwen3",
            CHAT + "<think>\n\n</think>\n\n",
            " Yes.\n",
            "",
            " Yes.\n",
            id="qwen3, thinking switched off",
        ),
        pytest.param(
            "qwen3", CHAT, "<think>\n\n</think>\n\nYes", "", "Yes", id="qwen3, no thought"
        ),
        pytest.param("deepseek_v3", CHAT, "Yes </think>", "", "Yes </think>", id="v3, not asked"),
        pytest.param("deepseek_v3", CHAT + "<think>", "a</think>b", "a", "b", id="v3, asked"),
        pytest.param("glm45", CHAT, "\n<think>a</think>\nb", "a", "b", id="glm"),
        pytest.param(
            "granite",
            CHAT,
            "Here is my thought process:\nHm.\n\nHere is my response:\nHere is it.",
            "Hm.",
            "Here is it.",
            id="granite",
        ),
        pytest.param(
            "granite",
            CHAT,
            "Here's my thought process: Hm. Here's my response: Yes",
            "Hm.",
            "Yes",
            id="granite, short forms",
        ),
        pytest.param("granite", CHAT, "Here is it.", "", "Here is it.", id="granite, no thought"),
        pytest.param("mistral", CHAT, "[THINK]Hm.[/THINK]Yes", "Hm.", "Yes", id="mistral"),
        pytest.param("mistral", CHAT, " [THIN]k", "", " [THIN]k", id="mistral, no thought"),
        pytest.param(
            "kimi_k2",
            CHAT,
            "<think>I call. <|tool_calls_section_begin|>...",
            "I call.",
            "<|tool_calls_section_begin|>...",
            id="kimi k2, a call ends the thought",
        ),
        pytest.param("seed_oss", CHAT, "<seed:think>a</seed:think>b", "a", "b", id="seed oss"),
    ],
)
def test_output_of_a_model(name: str, prompt: str, text: str, reasoning: str, content: str) -> None:
    assert split(name, prompt, text) == (reasoning, content)
    assert split(name, prompt, text, range(len(text))) == (reasoning, content)


@pytest.mark.parametrize(
    ("name", "prompt", "starts"),
    [
        ("qwen3", CHAT, True),
        ("qwen3", "Say <think>!" + CHAT, True),
        ("qwen3", CHAT + "<think>\n\n</think>\n\n", False),
        ("deepseek_v3", CHAT, False),
        ("deepseek_v3", "Say <think>" + CHAT, False),
        ("deepseek_v3", CHAT + "<think>", True),
        ("deepseek_v3", CHAT + "</think>", False),
        ("mistral", CHAT, False),
    ],
)
def test_the_end_of_the_prompt_decides_where_output_begins(
    name: str, prompt: str, starts: bool
) -> None:
    assert REASONING_PARSERS[name](prompt).starts_in_reasoning is starts


def test_the_state_follows_the_text() -> None:
    parser = REASONING_PARSERS["mistral"](CHAT)
    states = []
    for piece in ["[THI", "NK]", "Hm", ".\n[/TH", "INK]", "Yes"]:
        states.append((*parser.feed(piece), parser.is_reasoning))
    assert states == [
        ("", "", False),
        ("", "", True),
        ("Hm", "", True),
        (".", "", True),
        ("", "", False),
        ("", "Yes", False),
    ]
    assert not parser.starts_in_reasoning


@pytest.mark.parametrize("name", DISTINCT)
@given(
    opened=st.booleans(),
    parts=st.lists(
        st.text("ab<>/[]H \n", max_size=6) | st.sampled_from(["START", "END", "STA", "ND"]),
        max_size=8,
    ),
    cuts=CUTS,
)
@settings(max_examples=150)
def test_cuts_never_change_the_split(
    name: str, opened: bool, parts: list[str], cuts: list[int]
) -> None:
    parser = REASONING_PARSERS[name]
    written = {
        "START": parser.start,
        "END": parser.end,
        "STA": parser.start[:-2],
        "ND": parser.end[1:],
    }
    text = "".join(written.get(part, part) for part in parts)
    prompt = CHAT + parser.start if opened else CHAT
    whole = split(name, prompt, text)
    assert split(name, prompt, text, cuts) == whole
    assert split(name, prompt, text, range(len(text))) == whole
    reasoning, content = whole
    assert reasoning in text
    assert text.endswith(content)


@pytest.mark.parametrize("name", DISTINCT)
@given(reasoning=st.text(max_size=30), content=st.text(max_size=30), cuts=CUTS)
@settings(max_examples=50)
def test_a_thought_and_an_answer_come_back(
    name: str, reasoning: str, content: str, cuts: list[int]
) -> None:
    parser = REASONING_PARSERS[name]
    reasoning, content = reasoning.strip(" \t\r\n"), content.lstrip(" \t\r\n")
    text = f"{parser.start}\n{reasoning}\n{parser.end}\n\n{content}"
    assert split(name, CHAT, text, cuts) == (reasoning, content)


@pytest.mark.parametrize("name", ["granite", "qwen3"])
@pytest.mark.parametrize("unit", ["x", " ", "\n", "<", "[", "Here "])
def test_a_megabyte_takes_linear_time(name: str, unit: str) -> None:
    """In quadratic time, this would take minutes."""
    parser = REASONING_PARSERS[name]
    assert issubclass(parser, MarkedReasoningParser)
    text = f"{parser.start}a{unit * (1_000_000 // len(unit))}b{parser.end}c"
    started = time.process_time()
    reasoning, content = split(name, CHAT, text, range(0, len(text), 8))
    assert time.process_time() - started < 30
    assert (len(reasoning), content) == (len(text) - len(parser.start + parser.end) - 1, "c")
