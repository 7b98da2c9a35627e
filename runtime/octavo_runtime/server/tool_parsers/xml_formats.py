"""The tags of the notations with elements, and the formats that hold a model to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.schema_values import json_types


@dataclass(frozen=True, slots=True)
class Notation:
    """Tags around calls, their names, keys and values; see `XmlCallParser`.

    value_gap: what stands between a value and its tags. is_shared: a section may have many calls.
    """

    section: str
    section_end: str
    call_start: str
    name_end: str
    key_start: str
    key_end: str
    value_start: str
    value_end: str
    call_end: str
    value_gap: str = ""
    is_shared: bool = False

    def sections(self, calls: Sequence[formats.Format]) -> list[formats.Format]:
        """Tags of sections, one for each of `calls` that a section begins with."""
        if not self.section:
            return list(calls)
        begin = f"{self.section}\n"
        if self.is_shared:
            return formats.lists(calls, begin=begin, separator="", end=self.section_end)
        end = f"\n{self.section_end}"
        return [
            formats.tag(begin + call["begin"], call["content"], call["end"] + end) for call in calls
        ]

    def call(self, tool: Tool, schema: Mapping[str, Any]) -> formats.Format:
        """Tag of one call: the arguments in the order of the schema, those not required or not.

        A schema without properties admits arguments of any name.
        """
        properties = schema.get("properties")
        if properties:
            content = formats.sequence(*(self._argument(key, schema) for key in properties))
        else:
            content = self._any_arguments()
        begin = f"{self.call_start}{tool.function.name}{self.name_end}\n"
        return formats.tag(begin, content, self.call_end + ("\n" if self.is_shared else ""))

    def _argument(self, key: str, schema: Mapping[str, Any]) -> formats.Format:
        before, after = self._around_value()
        value = _value_format(formats.property_schema(key, schema))
        argument = formats.tag(f"{self.key_start}{key}{before}", value, after)
        return argument if key in schema.get("required", ()) else formats.optional(argument)

    def _any_arguments(self) -> formats.Format:
        before, after = self._around_value()
        key = formats.regex(r'[^<>"\n]+')
        content = formats.sequence(key, formats.const(before), formats.any_text())
        argument = formats.tag(self.key_start, content, after)
        return {**formats.tags([argument], separator=""), "at_least_one": False}

    def _around_value(self) -> tuple[str, str]:
        value_start = f"\n{self.value_start}" if self.value_start else ""
        return (
            f"{self.key_end}{value_start}{self.value_gap}",
            f"{self.value_gap}{self.value_end}\n",
        )


def _value_format(schema: dict[str, Any]) -> formats.Format:
    """Strings are written plainly, all else as JSON."""
    types = json_types(schema, schema)
    if types and "string" not in types:
        return formats.json_schema(schema)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        return formats.either(*(formats.const(_plain(value)) for value in values))
    return formats.any_text()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


QWEN3_CODER = Notation(
    section="<tool_call>",
    section_end="</tool_call>",
    call_start="<function=",
    name_end=">",
    key_start="<parameter=",
    key_end=">",
    value_start="",
    value_end="</parameter>",
    call_end="</function>",
    value_gap="\n",
)
GLM45 = Notation(
    section="",
    section_end="",
    call_start="<tool_call>",
    name_end="",
    key_start="<arg_key>",
    key_end="</arg_key>",
    value_start="<arg_value>",
    value_end="</arg_value>",
    call_end="</tool_call>",
)
MINIMAX_M2 = Notation(
    section="<minimax:tool_call>",
    section_end="</minimax:tool_call>",
    call_start='<invoke name="',
    name_end='">',
    key_start='<parameter name="',
    key_end='">',
    value_start="",
    value_end="</parameter>",
    call_end="</invoke>",
    is_shared=True,
)
