"""Types of single fields that several resources share: names, quantities, keyed lists."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"
_PERCENT = r"^(100|[1-9]?[0-9])%$"
_MAX_REPLICAS = 1000


def _quantity(value: Any) -> str:
    if type(value) is int and value >= 0:
        return str(value)
    if isinstance(value, str) and re.fullmatch(_QUANTITY, value):
        return value
    raise ValueError("write a quantity such as 4, 500m or 16Gi (one with a fraction in quotes)")


def _int_or_percent(value: Any) -> int | str:
    if type(value) is int and 0 <= value <= _MAX_REPLICAS:
        return value
    if isinstance(value, str) and re.fullmatch(_PERCENT, value):
        return value
    raise ValueError(f"write a whole number up to {_MAX_REPLICAS}, or a percentage such as 25%")


def _int_or_string(pattern: str, **keywords: Any) -> WithJsonSchema:
    # As structural schemas have it: `minimum` is for numbers, `pattern` for strings.
    return WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "minimum": 0, "pattern": pattern, **keywords}
    )


# Bytes or cores as Kubernetes writes them (500m, 4, 16Gi); text once parsed.
Quantity = Annotated[str, PlainValidator(_quantity), _int_or_string(_QUANTITY)]
IntOrPercent = Annotated[
    int | str, PlainValidator(_int_or_percent), _int_or_string(_PERCENT, maximum=_MAX_REPLICAS)
]

# RFC 1123 label: what most names in Kubernetes are.
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
# The name of an object that may have dots in it: a Secret, a claim, a class.
ObjectName = Annotated[
    str,
    Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
    Field(max_length=253),
]
# A model name in the API; it becomes an argument too, where it must not look like a flag.
ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][^\s]*$", max_length=253)]
# A part of Kubernetes' own API: checked by the API server when the pods' workload is applied.
KubernetesObject = Annotated[
    dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
]


@dataclass(frozen=True, slots=True)
class KeyedBy:
    """Marks a list whose items are told apart by one field: each has it, no two alike.

    Server-side apply then merges the list item by item (`x-kubernetes-list-type: map`).
    """

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        items = result["items"]
        if "$ref" not in items:
            items["properties"] = {
                self.key: {"type": "string", "description": "What tells the list's items apart."}
            }
            items["required"] = [self.key]
        return result | {
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": [self.key],
        }

    def _check(self, items: list[Any]) -> list[Any]:
        seen = set()
        for item in items:
            value = item.get(self.key) if isinstance(item, dict) else getattr(item, self.key)
            if not isinstance(value, str):
                raise ValueError(f"each item needs a {self.key}")
            if value in seen:
                raise ValueError(f"two items have the {self.key} {value!r}")
            seen.add(value)
        return items


@dataclass(frozen=True, slots=True)
class NoDuplicates:
    """Marks a list of strings that are all different (`x-kubernetes-list-type: set`)."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | {"x-kubernetes-list-type": "set"}

    @staticmethod
    def _check(items: list[str]) -> list[str]:
        for index, item in enumerate(items):
            if item in items[:index]:
                raise ValueError(f"{item!r} is there twice")
        return items
