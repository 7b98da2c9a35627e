"""Reads structural tags as they come from outside: types, fields, the older form."""

from collections.abc import Mapping
from typing import Any

Format = Mapping[str, Any]

_FIELDS = {
    "const_string": {"value"},
    "json_schema": {"json_schema"},
    "regex": {"pattern"},
    "grammar": {"grammar"},
    "any_text": set[str](),
    "sequence": {"elements"},
    "or": {"elements"},
    "tag": {"begin", "content", "end"},
    "triggered_tags": {"triggers", "tags", "at_least_one", "stop_after_first"},
    "tags_with_separator": {"tags", "separator", "at_least_one", "stop_after_first"},
}


class StructuralTagError(ValueError):
    """Says what is wrong with a structural tag."""


def from_older_form(tag: Format) -> Format:
    """The older form as a format of type triggered_tags."""
    return {
        "type": "triggered_tags",
        "triggers": items_of(tag, "triggers"),
        "tags": [
            {
                "type": "tag",
                "begin": text_of(structure, "begin"),
                "content": {
                    "type": "json_schema",
                    "json_schema": structure.get("schema", structure.get("json_schema", {})),
                },
                "end": text_of(structure, "end"),
            }
            for structure in objects_of(tag, "structures")
        ],
    }


def kind_of(item: Any) -> str:
    """The type of a format, whose fields all belong to that type."""
    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        raise StructuralTagError("a format must be an object with a `type`")
    kind: str = item["type"]
    unknown = set(item) - _FIELDS.get(kind, set(item)) - {"type"}
    if unknown:
        raise StructuralTagError(f"a format of type {kind} has no field {sorted(unknown)[0]!r}")
    return kind


def tags_of(item: Format) -> list[Format]:
    """The field `tags`. Tags that name no type are of type tag."""
    tags = [tag if "type" in tag else {**tag, "type": "tag"} for tag in objects_of(item, "tags")]
    for tag in tags:
        if kind_of(tag) != "tag":
            raise StructuralTagError(f"`tags` must have formats of type tag, not {kind_of(tag)}")
    return tags


def objects_of(item: Format, name: str) -> list[Format]:
    values = items_of(item, name)
    if not all(isinstance(value, Mapping) for value in values):
        raise StructuralTagError(f"`{name}` must be a list of objects")
    return values


def field_of(item: Format, name: str) -> Any:
    if name not in item:
        raise StructuralTagError(f"a format of type {item.get('type')} needs `{name}`")
    return item[name]


def text_of(item: Any, name: str) -> str:
    return string(field_of(item, name), name)


def string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise StructuralTagError(f"`{name}` must be text, got {type(value).__name__}")
    return value


def items_of(item: Format, name: str) -> list[Any]:
    value = field_of(item, name)
    if not isinstance(value, list) or not value:
        raise StructuralTagError(f"`{name}` must be a list that is not empty")
    return value


def flag_of(item: Format, name: str) -> bool:
    value = item.get(name, False)
    if not isinstance(value, bool):
        raise StructuralTagError(f"`{name}` must be true or false")
    return value
