"""Structural-tag formats: what a model may write, for the grammars that hold it to a notation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.tools import Tool

Format = dict[str, Any]


def const(value: str) -> Format:
    return {"type": "const_string", "value": value}


def json_schema(schema: dict[str, Any]) -> Format:
    return {"type": "json_schema", "json_schema": schema}


def regex(pattern: str) -> Format:
    return {"type": "regex", "pattern": pattern}


def any_text() -> Format:
    return {"type": "any_text"}


def sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Format) -> Format:
    return {"type": "or", "elements": list(elements)} if len(elements) > 1 else elements[0]


def optional(*elements: Format) -> Format:
    return either(const(""), sequence(*elements))


def tag(begin: str, content: Format, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def tags(tags: Sequence[Format], *, separator: str, parallel: bool = True) -> Format:
    """One of `tags`, or with `parallel` one or more."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not parallel,
    }


def lists(calls: Sequence[Format], *, begin: str, separator: str, end: str) -> list[Format]:
    """Tags of lists of one or more of `calls` (tags), one for each call that a list begins with."""
    more = optional(const(separator), tags(calls, separator=separator))
    return [
        tag(
            begin + call["begin"],
            sequence(call["content"], const(call["end"]), more),
            end,
        )
        for call in calls
    ]


def triggered(triggers: Sequence[str], tags: Sequence[Format]) -> Format:
    """Free text in which a trigger begins one of `tags`."""
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "at_least_one": False,
        "stop_after_first": False,
    }


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: always of an object. Raises ValidationError."""
    schema = {**(tool.function.parameters or {}), "type": "object"}
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(
        isinstance(value, dict | bool) for value in properties.values()
    ):
        raise _bad_schema(tool, "`properties` must be an object of schemas")
    if not isinstance(required, list):
        raise _bad_schema(tool, "`required` must be a list of names")
    return schema


def _bad_schema(tool: Tool, problem: str) -> ValidationError:
    return ValidationError(f"tool {tool.function.name!r}: {problem}", parameter="tools")


def strict_schema(tool: Tool) -> dict[str, Any]:
    """The schema that holds where only strict tools are pinned."""
    return arguments_schema(tool) if tool.function.strict else {"type": "object"}


def property_schema(key: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Schema of one property of an object, with the definitions that it may refer to."""
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    value = schema["properties"][key]
    if isinstance(value, bool):
        value = {} if value else {"not": {}}
    return {**value, **definitions}


def json_call(tool: Tool, key: str, schema: dict[str, Any], *, before: str, after: str) -> Format:
    """Tag of `{"name": ..., key: {...}}`."""
    begin = f'{before}{{"name": {json.dumps(tool.function.name)}, "{key}": '
    return tag(begin, json_schema(schema), "}" + after)


def any_strict(tools: Sequence[Tool]) -> bool:
    return any(tool.function.strict for tool in tools)
