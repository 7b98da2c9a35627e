"""Calls as a name and then its arguments in JSON, between special tokens: DeepSeek and Kimi K2."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.json_call import JsonCallParser

_NAME = re.compile(r"[\w.\-]*")
_NUMBER = re.compile(r"[:0-9]*")


class NamedCallParser(JsonCallParser):
    """Notation: section call* section_end; the section is left out by some models.

    call: start prefix NAME separator ARGUMENTS fence end, the name numbered (`:0`) if `numbered`.
    White space may stand between the parts; gap is what is usual around the arguments.
    """

    section: ClassVar[str]
    section_end: ClassVar[str]
    start: ClassVar[str]
    end: ClassVar[str]
    separator: ClassVar[str]
    prefix: ClassVar[str] = ""
    fence: ClassVar[str] = ""
    gap: ClassVar[str] = ""
    numbered: ClassVar[bool] = False

    def _read(self) -> Steps[None]:
        reader = self.reader
        while True:
            marker: str | None = yield from reader.until((self.section, self.start), self._say)
            if marker == self.section:
                yield from reader.spaces()
                marker = yield from reader.literal(self.start)
            if marker and (yield from self._read_named_call()):
                self._close()
                reader.mark()
                yield from reader.spaces()
                if (yield from reader.literal(self.section_end)):
                    reader.mark()
            self._give_up()

    def _read_named_call(self) -> Steps[bool]:
        """Read a call behind its start, which is left open; False: it is none."""
        reader = self.reader
        yield from reader.literal(self.prefix)
        name = yield from reader.word(_NAME)
        if self.numbered:
            yield from reader.word(_NUMBER)
        yield from reader.spaces()
        if not name or not (yield from reader.literal(self.separator)):
            return False
        yield from reader.spaces()
        if not (yield from self._read_arguments(name)):
            return False
        yield from reader.spaces()
        yield from reader.literal(self.fence)
        yield from reader.spaces()
        yield from reader.literal(self.end)
        return True

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        calls = [cls._tag(tool, formats.arguments_schema(tool)) for tool in tools]
        return formats.sequence(
            formats.const(cls.section),
            formats.tags(calls, separator="", parallel=parallel),
            formats.const(cls.section_end),
        )

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        if not formats.any_strict(tools):
            return None
        calls = [cls._tag(tool, formats.strict_schema(tool)) for tool in tools]
        lists = formats.lists(calls, begin=cls.section, separator="", end=cls.section_end)
        return formats.triggered([cls.section], lists)

    @classmethod
    def _tag(cls, tool: Tool, schema: dict[str, Any]) -> formats.Format:
        number = [formats.regex(":[0-9]+")] if cls.numbered else []
        separator = formats.const(f"{cls.gap}{cls.separator}{cls.gap}")
        return formats.tag(
            f"{cls.start}{cls.prefix}{tool.function.name}",
            formats.sequence(*number, separator, formats.json_schema(schema)),
            f"{cls.gap}{cls.fence}{cls.end}",
        )


class DeepSeekV31Parser(NamedCallParser):
    """`name<｜tool▁sep｜>{...}`."""

    section = "<｜tool▁calls▁begin｜>"
    section_end = "<｜tool▁calls▁end｜>"
    start = "<｜tool▁call▁begin｜>"
    end = "<｜tool▁call▁end｜>"
    separator = "<｜tool▁sep｜>"
    markers = (section, section_end, start, end, separator)


class DeepSeekV3Parser(DeepSeekV31Parser):
    """V3 and R1: `function<｜tool▁sep｜>name` and the arguments in a fenced block."""

    prefix = "function<｜tool▁sep｜>"
    separator = "```json"
    fence = "```"
    gap = "\n"


class KimiK2Parser(NamedCallParser):
    """`functions.name:0<|tool_call_argument_begin|>{...}`."""

    section = "<|tool_calls_section_begin|>"
    section_end = "<|tool_calls_section_end|>"
    start = "<|tool_call_begin|>"
    end = "<|tool_call_end|>"
    separator = "<|tool_call_argument_begin|>"
    prefix = "functions."
    numbered = True
    markers = (section, section_end, start, end, separator)
