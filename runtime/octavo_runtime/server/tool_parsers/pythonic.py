"""Calls as a list of Python calls: `[get_weather(city="Paris", days=3), now()]`.

Llama 3.2 and 4, ToolACE. The list is the beginning of the answer; Llama 4 may also put it between
`<|python_start|>` and `<|python_end|>`. Arguments are passed on when their call is complete.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.json_scanner import PythonScanner, json_text
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.python_literals import parse_arguments
from octavo_runtime.server.tool_parsers.stepwise import StepwiseParser

_NAME = re.compile(r"[\w.\-]*")
# Text without parentheses outside its strings.
_ANY_ARGUMENTS = r"""([^()"'\\]|"([^"\\]|\\.)*"|'([^'\\]|\\.)*')*"""


class PythonicParser(StepwiseParser):
    """start, end: tokens that may surround a list, if the family has such."""

    start: ClassVar[str] = ""
    end: ClassVar[str] = ""

    def _read(self) -> Steps[None]:
        self.reader.mark()
        yield from self.reader.spaces()
        yield from self._read_list()
        while self.start:
            self._give_up()
            yield from self.reader.until((self.start,), self._say)
            yield from self.reader.spaces()
            yield from self._read_list()

    def _read_list(self) -> Steps[None]:
        """Read a list as far as it is one; the mark then stands behind it."""
        reader = self.reader
        more = yield from reader.literal("[")
        while more:
            yield from reader.spaces()
            if not (yield from self._read_call()):
                return
            reader.mark()
            yield from reader.spaces()
            more = yield from reader.literal(",")
            if not more and (yield from reader.literal("]")):
                reader.mark()
                yield from self._read_end()

    def _read_end(self) -> Steps[None]:
        if self.end:
            yield from self.reader.spaces()
            if (yield from self.reader.literal(self.end)):
                self.reader.mark()

    def _read_call(self) -> Steps[bool]:
        name = yield from self.reader.word(_NAME)
        if not name or (yield from self.reader.peek()) != "(":
            return False
        parts: list[str] = []
        yield from self.reader.scan(PythonScanner(), parts.append)
        try:
            arguments = json_text(parse_arguments("".join(parts)))
        except ValueError:
            return False
        self._open(name)
        self._argue(arguments)
        self._close()
        return True

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        calls = [_call(tool, formats.arguments_schema(tool)) for tool in tools]
        return formats.sequence(
            formats.const(f"{cls.start}["),
            formats.tags(calls, separator=", ", parallel=parallel),
            formats.const(f"]{cls.end}"),
        )

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Without a token before them, pins lists that begin with a call of a strict tool."""
        if not formats.any_strict(tools):
            return None
        calls = [_call(tool, formats.strict_schema(tool)) for tool in tools]
        lists = formats.lists(calls, begin=f"{cls.start}[", separator=", ", end=f"]{cls.end}")
        if cls.start:
            return formats.triggered([cls.start], lists)
        pinned = [entry for entry, tool in zip(lists, tools, strict=True) if tool.function.strict]
        return formats.triggered([entry["begin"] for entry in pinned], pinned)


class Llama4PythonicParser(PythonicParser):
    start = "<|python_start|>"
    end = "<|python_end|>"
    markers = (start, end)


def _call(tool: Tool, schema: dict[str, Any]) -> formats.Format:
    """Tag of `name(key=value, ...)`, required arguments first, values in JSON.

    A schema without properties admits any arguments.
    """
    properties = schema.get("properties") or {}
    required = [_argument(key, schema) for key in properties if key in schema.get("required", ())]
    others = [_argument(key, schema) for key in properties if key not in schema.get("required", ())]
    if not properties:
        content = formats.regex(_ANY_ARGUMENTS)
    elif required:
        content = _listed(required, others)
    else:
        choices = [_listed(others[i : i + 1], others[i + 1 :]) for i in range(len(others))]
        content = formats.either(formats.const(""), *choices)
    return formats.tag(f"{tool.function.name}(", content, ")")


def _argument(key: str, schema: dict[str, Any]) -> formats.Format:
    value = formats.json_schema(formats.property_schema(key, schema))
    return formats.sequence(formats.const(f"{key}="), value)


def _listed(required: Sequence[formats.Format], others: Sequence[formats.Format]) -> formats.Format:
    """All of `required` (at least one), then any of `others`, with commas between."""
    first, *rest = required
    comma = formats.const(", ")
    return formats.sequence(
        first,
        *(formats.sequence(comma, argument) for argument in rest),
        *(formats.optional(comma, argument) for argument in others),
    )
