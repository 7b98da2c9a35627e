"""Calls as bare JSON objects: `{"name": ..., "parameters": {...}}; {...}`, the notation of Llama 3.

The objects stand at the beginning of the answer or behind `<|python_tag|>`; JSON further down in an
answer is content.
"""

from collections.abc import Sequence
from typing import Any

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.json_call import JsonCallParser

_TAG = "<|python_tag|>"


class Llama3JsonParser(JsonCallParser):
    markers = (_TAG,)

    def _read(self) -> Steps[None]:
        self.reader.mark()
        yield from self.reader.spaces()
        yield from self._read_calls()
        while True:
            yield from self.reader.until((_TAG,), self._say)
            yield from self.reader.spaces()
            yield from self._read_calls()

    def _read_calls(self) -> Steps[None]:
        """Read calls with `;` or nothing between them, until one is none."""
        while (yield from self._read_call(needs_arguments=True)):
            self._close()
            self.reader.mark()
            yield from self.reader.spaces()
            yield from self.reader.literal(";")
            yield from self.reader.spaces()
        self._give_up()

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        calls = [cls._tag(tool) for tool in tools]
        return formats.tags(calls, separator="; ", parallel=parallel)

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Pins objects that begin with a strict tool's name, since this notation has no marker."""
        calls = [cls._tag(tool) for tool in tools if tool.function.strict]
        triggers = [call["begin"].removesuffix(' "parameters": ') for call in calls]
        return formats.triggered(triggers, calls) if calls else None

    @classmethod
    def _tag(cls, tool: Tool) -> formats.Format:
        schema = formats.arguments_schema(tool)
        return formats.json_call(tool, "parameters", schema, before="", after="")
