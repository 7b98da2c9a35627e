"""Values that models write as plain text, turned into JSON as the tool's schema asks."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo_protocol.openai.tools import Tool
from octavo_runtime.server.json_scanner import json_text, parse_json
from octavo_runtime.server.tool_parsers.python_literals import parse_literal

Schema = Mapping[str, Any]
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}
_MAX_REFERENCES = 16


class ArgumentSchema:
    """The argument schema of the tool called `name`, if there is one."""

    def __init__(self, tools: Sequence[Tool], name: str) -> None:
        parameters = [tool.function.parameters for tool in tools if tool.function.name == name]
        self._root: Schema = (parameters[0] if parameters else None) or {}

    def types(self, key: str) -> frozenset[str]:
        """JSON types that the argument may have; empty: anything."""
        properties = self._root.get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        return json_types(schema, self._root)

    def value(self, key: str, text: str) -> str:
        """JSON text of the value that is written as `text`: a string unless the schema differs."""
        types = self.types(key)
        others = types - {"string"}
        if others:
            for read in (_as_json, _as_python):
                value = read(text.strip(), others)
                if value is not None:
                    return value
        return json_text(text)


def json_types(schema: object, root: Schema) -> frozenset[str]:
    """JSON types that `schema`, a part of `root`, admits; empty: it does not say."""
    return frozenset(_types(schema, root, _MAX_REFERENCES))


def _types(schema: object, root: Schema, depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or depth == 0:
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_resolve(reference, root), root, depth - 1)
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return {_type_of(value) for value in values}
    found: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(key)
        for branch in branches if isinstance(branches, list) else ():
            found |= _types(branch, root, depth - 1)
    return found


def _resolve(reference: str, root: Schema) -> object:
    node: object = root
    for step in reference.removeprefix("#").split("/")[1:]:
        node = node.get(step) if isinstance(node, Mapping) else None
    return node


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return next(name for name, types in _PYTHON_TYPES.items() if isinstance(value, types))


def _fits(value: object, types: frozenset[str]) -> bool:
    name = _type_of(value)
    if isinstance(value, float) and value == int(value):
        name = "integer"
    return name in types or (name == "integer" and "number" in types)


def _as_json(text: str, types: frozenset[str]) -> str | None:
    try:
        return text if _fits(parse_json(text), types) else None
    except (ValueError, OverflowError):
        return None


def _as_python(text: str, types: frozenset[str]) -> str | None:
    """Models trained on Python write `True`, `None` and `{'a': 1}`."""
    try:
        value = parse_literal(text)
        return json_text(value) if _fits(value, types) else None
    except (ValueError, OverflowError):
        return None
