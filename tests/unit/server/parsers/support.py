"""How the parser tests feed text, and how each family writes calls down."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.tool_parsers import TOOL_PARSERS

Call = tuple[str, dict[str, Any]]


def tool(name: str, parameters: dict[str, Any] | None = None, *, strict: bool = False) -> Tool:
    function = {"name": name, "parameters": parameters, "strict": strict}
    return Tool.model_validate({"function": function})


# Every type of value, for the notations that need the schema to tell "3" from 3.
WEATHER = tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "scale": {"enum": ["celsius", "fahrenheit"]},
            "detailed": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/Place"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city"],
        "$defs": {"Place": {"type": "object", "properties": {"lat": {"type": "number"}}}},
    },
)
NOW = tool("time.now")
TOOLS = [WEATHER, NOW]


def pieces(text: str, cuts: Sequence[int]) -> Iterator[str]:
    """`text` cut at `cuts`, which need not be sorted or inside it."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return (text[start:end] for start, end in pairwise(places))


def parse(
    name: str, text: str, cuts: Sequence[int] = (), tools: Sequence[Tool] = TOOLS
) -> tuple[str, list[tuple[str, str]]]:
    """Content and (name, arguments) of each call; checks the order of what streams."""
    parser = TOOL_PARSERS[name](tools)
    content = ""
    calls: list[tuple[str, str]] = []
    for parsed in [*map(parser.feed, pieces(text, cuts)), parser.finish()]:
        content += parsed.content
        for delta in parsed.calls:
            assert delta.id is None
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


def _objects(key: str, calls: Sequence[Call]) -> list[str]:
    return [json.dumps({"name": name, key: value}, ensure_ascii=False) for name, value in calls]


def _hermes(calls: Sequence[Call]) -> str:
    bodies = _objects("arguments", calls)
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def _internlm(calls: Sequence[Call]) -> str:
    bodies = _objects("parameters", calls)
    return "\n".join(f"<|action_start|><|plugin|>\n{body}<|action_end|>" for body in bodies)


def _list(start: str, key: str, end: str) -> Callable[[Sequence[Call]], str]:
    return lambda calls: f"{start}[{', '.join(_objects(key, calls))}]{end}"


def _python(calls: Sequence[Call]) -> str:
    texts = [
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    ]
    return f"[{', '.join(texts)}]"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _qwen(calls: Sequence[Call]) -> str:
    return "\n".join(
        f"<tool_call>\n<function={name}>\n"
        + "".join(f"<parameter={k}>\n{_plain(v)}\n</parameter>\n" for k, v in arguments.items())
        + "</function>\n</tool_call>"
        for name, arguments in calls
    )


def _glm(calls: Sequence[Call]) -> str:
    return "\n".join(
        f"<tool_call>{name}\n"
        + "".join(
            f"<arg_key>{k}</arg_key>\n<arg_value>{_plain(v)}</arg_value>\n"
            for k, v in arguments.items()
        )
        + "</tool_call>"
        for name, arguments in calls
    )


def _minimax(calls: Sequence[Call]) -> str:
    invocations = "".join(
        f'<invoke name="{name}">\n'
        + "".join(f'<parameter name="{k}">{_plain(v)}</parameter>\n' for k, v in arguments.items())
        + "</invoke>\n"
        for name, arguments in calls
    )
    return f"<minimax:tool_call>\n{invocations}</minimax:tool_call>"


def _named(section: str, before: str, between: str, after: str, end: str) -> Any:
    """`{}` in `before` is the call's number."""
    return lambda calls: (
        section
        + "".join(
            f"{before}{name}{between.format(number)}{json.dumps(arguments)}{after}"
            for number, (name, arguments) in enumerate(calls)
        )
        + end
    )


_DEEPSEEK = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_KIMI = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"

WRITERS: dict[str, Callable[[Sequence[Call]], str]] = {
    "deepseek_v3": _named(
        _DEEPSEEK[0],
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        _DEEPSEEK[1],
    ),
    "deepseek_v31": _named(
        _DEEPSEEK[0],
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        _DEEPSEEK[1],
    ),
    "glm45": _glm,
    "granite": _list("<|tool_call|>", "arguments", ""),
    "granite4": _hermes,
    "hermes": _hermes,
    "internlm": _internlm,
    "jamba": _list("<tool_calls>", "arguments", "</tool_calls>"),
    "json": _list("", "parameters", ""),
    "kimi_k2": _named(
        _KIMI[0],
        "<|tool_call_begin|>functions.",
        ":{}<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        _KIMI[1],
    ),
    "llama3_json": lambda calls: "; ".join(_objects("parameters", calls)),
    "llama4_json": lambda calls: "; ".join(_objects("parameters", calls)),
    "llama4_pythonic": lambda calls: f"<|python_start|>{_python(calls)}<|python_end|>",
    "minimax_m2": _minimax,
    "mistral": _named("", "[TOOL_CALLS]", "[ARGS]", "", ""),
    "phi4_mini_json": _list("functools", "arguments", ""),
    "pythonic": _python,
    "qwen25": _hermes,
    "qwen3_coder": _qwen,
    "qwen3_json": _hermes,
    "qwen3_xml": _qwen,
    "xlam": _list("", "arguments", ""),
}
# The parsers without a marker find calls only at the beginning of an answer.
AT_BEGINNING = {"json", "llama3_json", "llama4_json", "pythonic", "xlam"}

# Parsers of distinct notations: aliases need no second run of a property.
DISTINCT = sorted({parser: name for name, parser in sorted(TOOL_PARSERS.items())}.values())

TRICKY = st.sampled_from(
    [
        "</tool_call>",
        "}",
        "]}",
        '"',
        "\\",
        '\\"}',
        "'",
        "é",
        "🙂",
        "[TOOL_CALLS]",
        "; {",
        "<|",
        ")]",
    ]
)
STRINGS = st.lists(st.text(max_size=5) | TRICKY, max_size=5).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)
CUTS = st.lists(st.integers(0, 10**6), max_size=30)
