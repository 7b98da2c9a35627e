"""From a typed model to the structural OpenAPI schema that CustomResourceDefinitions take.

A structural schema spells everything out: no references, one type per field, no `null` (API
servers drop nulls). Of defaults only single values are kept; an object that is left out stays out.
"""

from collections.abc import Mapping
from typing import Any

from octavo_protocol.resources.base import ResourceModel

Schema = dict[str, Any]

_KEPT = (
    *("description", "type", "format", "x-kubernetes-int-or-string", "enum", "pattern"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required"),
    *("x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type"),
    *("x-kubernetes-list-map-keys", "x-kubernetes-validations"),
)
# For whoever reads the files: what a field is goes before what is in it.
_ORDER = (*_KEPT, "default", "items", "additionalProperties", "properties")
# Said by the structure itself, or of no use to an API server.
_DROPPED = frozenset({"title", "$defs"})


def structural_schema(model: type[ResourceModel], *, with_defaults: bool) -> Schema:
    """The schema of `model` as a property of a resource.

    Raises `ValueError` for a field whose type cannot be said in a structural schema.
    """
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}), with_defaults)


def _structural(node: Schema, definitions: Mapping[str, Schema], with_defaults: bool) -> Schema:
    node = _resolved(node, definitions)
    result: Schema = {}
    for keyword, value in node.items():
        match keyword:
            case "properties":
                result["properties"] = {
                    name: _structural(child, definitions, with_defaults)
                    for name, child in value.items()
                }
            case "items":
                result["items"] = _structural(value, definitions, with_defaults)
            case "additionalProperties":
                # Unknown fields are dropped by the server, unless it is told to keep them.
                if isinstance(value, dict):
                    result[keyword] = _structural(value, definitions, with_defaults)
            case "const":
                result["enum"] = [value]
            case "default":
                if with_defaults and isinstance(value, str | int):
                    result["default"] = value
            case _ if keyword in _KEPT:
                result[keyword] = value
            case _ if keyword not in _DROPPED:
                raise ValueError(f"{keyword} of {node} cannot be in a structural schema")
    return {keyword: result[keyword] for keyword in _ORDER if keyword in result}


def _resolved(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """`node` without references and alternatives to null; what it says itself goes first."""
    own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _resolved(target, definitions) | own
    if "anyOf" in node:
        choices = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
        if len(choices) != 1:
            raise ValueError(f"{node} has several types")
        return _resolved(choices[0], definitions) | own
    return own
