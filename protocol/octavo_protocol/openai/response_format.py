"""`response_format` and `structured_outputs` of a request, as one `StructuredOutputsParams`."""

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.strict import Strict
from octavo_protocol.structured_outputs import StructuredOutputsParams


class JsonSchemaFormat(Strict):
    """`schema` is the JSON schema; the other fields only describe it."""

    name: str = "schema"
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """Shape of the answer: text, json_object, json_schema, or a structural tag.

    A structural tag is given as `format` (nested formats) or, in its older form, as `structures`
    and `triggers`.
    """

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    format: dict[str, Any] | None = None
    structures: List[dict[str, Any]] | None = None
    triggers: List[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("type json_schema needs json_schema: {name, schema}")
        is_tag = self.format is not None or (
            self.structures is not None and self.triggers is not None
        )
        if self.type == "structural_tag" and not is_tag:
            raise ValueError("type structural_tag needs format, or structures and triggers")
        return self

    def as_params(self) -> StructuredOutputsParams | None:
        """None for plain text. Raises `ValidationError`."""
        match self.type:
            case "json_object":
                return StructuredOutputsParams(json_object=True)
            case "json_schema":
                assert self.json_schema is not None
                schema = self.json_schema.json_schema
                if schema is None:
                    return StructuredOutputsParams(json_object=True)
                return StructuredOutputsParams(json=schema)
            case "structural_tag":
                given = self.model_dump(exclude_none=True)
                return StructuredOutputsParams(structural_tag=json.dumps(given))
        return None


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`: exactly one of the constraints."""

    model_config = ConfigDict(protected_namespaces=())

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: List[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def as_params(self) -> StructuredOutputsParams:
        """Raises `ValidationError`."""
        return StructuredOutputsParams(**self.model_dump(by_alias=True))


def structured_outputs(
    response_format: ResponseFormat | None, given: StructuredOutputs | None
) -> StructuredOutputsParams | None:
    """The one constraint of a request. Raises `ValidationError` for two."""
    try:
        params = response_format.as_params() if response_format is not None else None
    except ValidationError as error:
        raise ValidationError(error.message, parameter="response_format") from error
    if given is None:
        return params
    if params is not None:
        raise ValidationError(
            "response_format and structured_outputs: give only one", parameter="structured_outputs"
        )
    return given.as_params()
