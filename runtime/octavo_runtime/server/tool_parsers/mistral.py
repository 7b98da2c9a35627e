"""Mistral's calls, in the notations of its tokenizers behind the token `[TOOL_CALLS]`.

Up to v7 a JSON list: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`. Then the name by
itself: `[TOOL_CALLS]name[ARGS]{...}[TOOL_CALLS]name[ARGS]{...}`, with `[CALL_ID]...` or without
`[ARGS]` in some versions.
"""

import re
from collections.abc import Sequence
from typing import Any

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.json_call import JsonCallParser

_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAME = re.compile(r"[\w.\-]*")


class MistralParser(JsonCallParser):
    markers = (_CALLS, _ARGS, _CALL_ID)

    def _read(self) -> Steps[None]:
        reader = self.reader
        while True:
            yield from reader.until((_CALLS,), self._say)
            yield from reader.spaces()
            match (yield from reader.peek()):
                case "[":
                    yield from self._read_list()
                case "{":
                    if (yield from self._read_call(needs_arguments=True)):
                        self._close()
                case _:
                    yield from self._read_named_call()
            self._give_up()

    def _read_named_call(self) -> Steps[None]:
        reader = self.reader
        name = yield from reader.word(_NAME)
        if (yield from reader.literal(_CALL_ID)):
            yield from reader.word(_NAME)
        yield from reader.literal(_ARGS)
        yield from reader.spaces()
        if name and (yield from self._read_arguments(name)):
            self._close()

    @classmethod
    def forced_format(cls, tools: Sequence[Tool], *, parallel: bool) -> dict[str, Any]:
        """Either notation: which of them the model knows depends on its age."""
        listed = [
            formats.json_call(
                tool, "arguments", formats.arguments_schema(tool), before="", after=""
            )
            for tool in tools
        ]
        named = [_named_tag(tool, formats.arguments_schema(tool)) for tool in tools]
        return formats.either(
            formats.tags(named, separator="", parallel=parallel),
            formats.sequence(
                formats.const(f"{_CALLS}["),
                formats.tags(listed, separator=", ", parallel=parallel),
                formats.const("]"),
            ),
        )

    @classmethod
    def strict_format(cls, tools: Sequence[Tool]) -> dict[str, Any] | None:
        """Pins the notation of names."""
        if not formats.any_strict(tools):
            return None
        calls = [_named_tag(tool, formats.strict_schema(tool)) for tool in tools]
        return formats.triggered([_CALLS], calls)


def _named_tag(tool: Tool, schema: dict[str, Any]) -> formats.Format:
    begin = f"{_CALLS}{tool.function.name}{_ARGS}"
    return formats.tag(begin, formats.json_schema(schema), "")
