"""Calls as a JSON list behind an optional marker: `[{"name": ..., "parameters": {...}}, ...]`.

Without a marker (`json`, `xlam`) the list is the beginning of the answer; it is also what forced
calls are written in where the server knows no notation of the model.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.json_call import JsonCallParser


class JsonListParser(JsonCallParser):
    """start, end: what stands before and, if at all, behind a list. key: of the arguments."""

    start: ClassVar[str] = ""
    end: ClassVar[str] = ""
    key: ClassVar[str] = "parameters"

    def _read(self) -> Steps[None]:
        reader = self.reader
        if not self.start:
            reader.mark()
            yield from reader.spaces()
            yield from self._read_list()
            return
        while True:
            yield from reader.until((self.start,), self._say)
            yield from reader.spaces()
            if (yield from self._read_list()) and self.end:
                yield from reader.spaces()
                if (yield from reader.literal(self.end)):
                    reader.mark()
            self._give_up()

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        calls = [cls._call(tool, formats.arguments_schema(tool)) for tool in tools]
        return formats.sequence(
            formats.const(f"{cls.start}["),
            formats.tags(calls, separator=", ", parallel=parallel),
            formats.const(f"]{cls.end}"),
        )

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Without a marker, pins lists that begin with a strict tool's name."""
        if not formats.any_strict(tools):
            return None
        calls = [cls._call(tool, formats.strict_schema(tool)) for tool in tools]
        lists = formats.lists(calls, begin=f"{cls.start}[", separator=", ", end=f"]{cls.end}")
        if cls.start:
            return formats.triggered([cls.start], lists)
        pinned = [entry for entry, tool in zip(lists, tools, strict=True) if tool.function.strict]
        return formats.triggered([_up_to_name(entry) for entry in pinned], pinned)

    @classmethod
    def _call(cls, tool: Tool, schema: dict[str, Any]) -> formats.Format:
        return formats.json_call(tool, cls.key, schema, before="", after="")


def _up_to_name(call: formats.Format) -> str:
    """The beginning of a tag of a call, with the call's name."""
    begin: str = call["begin"]
    return begin[: begin.rindex(' "')]


class XlamParser(JsonListParser):
    key = "arguments"


class GraniteParser(JsonListParser):
    """Granite 3.0 to 3.3."""

    start = "<|tool_call|>"
    key = "arguments"
    markers = (start,)


class JambaParser(JsonListParser):
    start = "<tool_calls>"
    end = "</tool_calls>"
    key = "arguments"
    markers = (start, end)


class Phi4MiniParser(JsonListParser):
    start = "functools"
    key = "arguments"
