"""Calls whose arguments are elements with plain text, converted by the schema of the tool.

Qwen 3 Coder: `<tool_call><function=f><parameter=city>Paris</parameter></function></tool_call>`.
GLM 4.5 and MiniMax M2 write other tags. Strings stream; other values are passed on when complete.
"""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.json_scanner import json_text
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats, xml_formats
from octavo_runtime.server.tool_parsers.schema_values import ArgumentSchema
from octavo_runtime.server.tool_parsers.stepwise import StepwiseParser

_NAME = re.compile(r"[\w.\-]*")
_KEY = re.compile(r'[^<>"\n]*')


class XmlCallParser(StepwiseParser):
    """Notation: section call* section_end, the section left out by some models;

    call:     call_start NAME name_end argument* call_end
    argument: key_start KEY key_end value_start VALUE value_end
    White space may stand between elements; one line break at either end of a value is not its.
    """

    notation: ClassVar[xml_formats.Notation]

    def _read(self) -> Steps[None]:
        reader, notation = self.reader, self.notation
        starts = [start for start in (notation.section, notation.call_start) if start]
        while True:
            start: str | None = yield from reader.until(starts, self._say)
            if start == notation.section:
                yield from reader.spaces()
                start = yield from reader.literal(notation.call_start)
            if start and (yield from self._read_call()):
                self._close()
                reader.mark()
                yield from reader.spaces()
                if notation.section and (yield from reader.literal(notation.section_end)):
                    reader.mark()
            self._give_up()

    def _read_call(self) -> Steps[bool]:
        """Read a call behind its start, which is left open; False: it is none."""
        reader, notation = self.reader, self.notation
        name = yield from reader.word(_NAME)
        if not name or (yield from reader.literal(notation.name_end)) is None:
            return False
        yield from reader.spaces()
        element = yield from reader.literal(notation.key_start, notation.call_end)
        if element is None:
            return False
        self._open(name)
        self._argue("{")
        schema = ArgumentSchema(self.tools, name)
        separator = ""
        while element == notation.key_start:
            key = yield from self._read_key()
            if key is None:
                break
            self._argue(f"{separator}{json_text(key)}: ")
            yield from self._read_value(key, schema)
            separator = ", "
            reader.mark()
            yield from reader.spaces()
            element = yield from reader.literal(notation.key_start, notation.call_end)
        if element != notation.call_end:
            self._give_up()
        self._argue("}")
        return True

    def _read_key(self) -> Steps[str | None]:
        """Read an argument from behind `key_start` up to its value: its key; None: it is broken."""
        reader, notation = self.reader, self.notation
        key = (yield from reader.word(_KEY)).strip()
        if (yield from reader.literal(notation.key_end)) is None:
            return None
        if notation.value_start:
            yield from reader.spaces()
            if not (yield from reader.literal(notation.value_start)):
                return None
        return key

    def _read_value(self, key: str, schema: ArgumentSchema) -> Steps[None]:
        value = _Lines()
        end = (self.notation.value_end,)
        if schema.types(key) <= {"string"}:
            self._argue('"')
            yield from self.reader.until(end, lambda text: self._argue(_escaped(value.add(text))))
            self._argue('"')
        else:
            parts: list[str] = []
            yield from self.reader.until(end, lambda text: parts.append(value.add(text)))
            self._argue(schema.value(key, "".join(parts)))

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        notation = cls.notation
        calls = [notation.call(tool, formats.arguments_schema(tool)) for tool in tools]
        if not notation.is_shared:
            sections = notation.sections(calls)
            return formats.tags(sections, separator="\n", parallel=parallel)
        return formats.sequence(
            formats.const(f"{notation.section}\n"),
            formats.tags(calls, separator="", parallel=parallel),
            formats.const(notation.section_end),
        )

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        if not formats.any_strict(tools):
            return None
        notation = cls.notation
        calls = [notation.call(tool, formats.strict_schema(tool)) for tool in tools]
        start = notation.section or notation.call_start
        return formats.triggered([start], notation.sections(calls))


class _Lines:
    """Drops one line break at the beginning of a text and one at its end."""

    def __init__(self) -> None:
        self._has_begun = False
        self._held = ""

    def add(self, text: str) -> str:
        """The next piece of the text, without what may be the line break at its end."""
        if text and not self._has_begun:
            self._has_begun = True
            text = text.removeprefix("\n")
        if not text:
            return ""
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        return text.removesuffix("\n")


def _escaped(text: str) -> str:
    """`text` as it stands inside a JSON string."""
    return json_text(text)[1:-1]


class Qwen3CoderParser(XmlCallParser):
    markers = ("<tool_call>", "</tool_call>")
    notation = xml_formats.QWEN3_CODER


class Glm45Parser(XmlCallParser):
    notation = xml_formats.GLM45
    markers = (
        *("<tool_call>", "</tool_call>"),
        *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    )


class MinimaxM2Parser(XmlCallParser):
    markers = ("<minimax:tool_call>", "</minimax:tool_call>")
    notation = xml_formats.MINIMAX_M2
