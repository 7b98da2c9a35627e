"""Calls as JSON between tags: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Hermes 2 and 3, Qwen 2.5 and 3, Granite 4; InternLM with other tags.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.json_call import JsonCallParser


class HermesParser(JsonCallParser):
    """start, end: the tags; opening, closing: with the usual white space. key: of arguments."""

    start: ClassVar[str] = "<tool_call>"
    end: ClassVar[str] = "</tool_call>"
    key: ClassVar[str] = "arguments"
    opening: ClassVar[str] = "<tool_call>\n"
    closing: ClassVar[str] = "\n</tool_call>"
    markers: ClassVar[tuple[str, ...]] = (start, end)

    def _read(self) -> Steps[None]:
        while True:
            yield from self.reader.until((self.start,), self._say)
            yield from self.reader.spaces()
            if (yield from self._read_call()):
                yield from self.reader.spaces()
                yield from self.reader.literal(self.end)
                self._close()
            else:
                self._give_up()

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        calls = [cls._tag(tool, formats.arguments_schema(tool)) for tool in tools]
        return formats.tags(calls, separator="\n", parallel=parallel)

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        if not formats.any_strict(tools):
            return None
        calls = [cls._tag(tool, formats.strict_schema(tool)) for tool in tools]
        return formats.triggered([cls.start], calls)

    @classmethod
    def _tag(cls, tool: Tool, schema: dict[str, Any]) -> formats.Format:
        return formats.json_call(tool, cls.key, schema, before=cls.opening, after=cls.closing)


class InternLmParser(HermesParser):
    """InternLM 2 and 2.5, whose tags are two tokens."""

    start = "<|action_start|><|plugin|>"
    end = "<|action_end|>"
    opening = "<|action_start|><|plugin|>\n"
    closing = end
    key = "parameters"
    markers = ("<|action_start|>", "<|plugin|>", end)
