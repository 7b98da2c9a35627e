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
        return cls._list(formats.tags(calls, separator=", ", parallel=parallel))

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Without a marker, pins lists that begin with a strict tool's name."""
        if not formats.any_strict(tools):
            return None
        calls = [cls._call(tool, formats.strict_schema(tool)) for tool in tools]
        rest = formats.optional(formats.const(", "), formats.tags(calls, separator=", "))
        lists = [cls._list_of(tool, rest) for tool in tools if cls.start or tool.function.strict]
        triggers = [cls.start] if cls.start else [_up_to_name(entry) for entry in lists]
        return formats.triggered(triggers, lists)

    @classmethod
    def _call(cls, tool: Tool, schema: dict[str, Any], before: str = "") -> formats.Format:
        return formats.json_call(tool, cls.key, schema, before=before, after="")

    @classmethod
    def _list(cls, calls: formats.Format) -> formats.Format:
        return formats.sequence(formats.const(f"{cls.start}["), calls, formats.const(f"]{cls.end}"))

    @classmethod
    def _list_of(cls, tool: Tool, rest: formats.Format) -> formats.Format:
        """Tag of a list whose first call is of `tool`."""
        call = cls._call(tool, formats.strict_schema(tool), before=f"{cls.start}[")
        content = formats.sequence(call["content"], formats.const(call["end"]), rest)
        return formats.tag(call["begin"], content, f"]{cls.end}")


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
