"""The tags of the notations with elements, and the formats that hold a model to them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.tool_parsers import formats
from octavo_runtime.server.tool_parsers.schema_values import json_types


@dataclass(frozen=True, slots=True)
class Notation:
    """Tags around calls, their names, keys and values; see `XmlCallParser`.

    value_gap: what stands between a value and its tags.
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

    def call(self, tool: Tool, schema: Mapping[str, Any]) -> formats.Format:
        """Tag of one call: the arguments in the order of the schema, those not required or not.

        A schema without properties admits arguments of any name.
        """
        section, section_end = (
            (f"{self.section}\n", f"\n{self.section_end}") if self.section else ("", "")
        )
        begin = f"{section}{self.call_start}{tool.function.name}{self.name_end}\n"
        properties = schema.get("properties")
        if properties:
            content = formats.sequence(*(self._argument(key, schema) for key in properties))
        else:
            content = self._any_arguments()
        return formats.tag(begin, content, self.call_end + section_end)

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
    if values:
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
)
