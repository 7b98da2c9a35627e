"""What all resource models share: camelCase names, cross-field rules, errors with field paths.

A rule that concerns several fields is written once, as a `Rule`: its CEL text goes into the CRD for
API servers that enforce it, its Python form runs wherever a manifest is parsed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from octavo_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over several fields of one object.

    cel: the condition over `self`, in the CEL of CustomResourceDefinitions; objects that may be
    absent need `has`, as only single values get their defaults there. is_met: the same over
    the parsed model. field: what the error points at, in manifest spelling, relative to the object.
    message: what is wrong and what to write instead.
    """

    cel: str
    is_met: Callable[[Any], bool]
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class TransitionRule:
    """A condition over an object and what it was before; API servers ask it of changes.

    cel: over `self` and `oldSelf`. is_met: the same over the parsed models, the new one first.
    field, message: as of a `Rule`.
    """

    cel: str
    is_met: Callable[[Any, Any], bool]
    field: str
    message: str


class ResourceModel(BaseModel):
    """Base of everything inside a manifest: camelCase there, snake_case here, no unknown fields."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)

    rules: ClassVar[tuple[Rule, ...]] = ()
    transition_rules: ClassVar[tuple[TransitionRule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        # API servers do so before they fill in defaults: `replicas:` with nothing means nothing.
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if not rule.is_met(self):
                raise PydanticCustomError("rule", "{message}", _context(rule))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        rules: list[Rule | TransitionRule] = [*cls.rules, *cls.transition_rules]
        if rules:
            validations = [_validation(rule) for rule in rules]
            handler.resolve_ref_schema(result)["x-kubernetes-validations"] = validations
        return result


def _context(rule: Rule) -> dict[str, Any]:
    return {"message": rule.message, "field": rule.field}


def _validation(rule: Rule | TransitionRule) -> dict[str, str]:
    # The field is part of the message: `fieldPath` is refused by servers before Kubernetes 1.28.
    return {"rule": rule.cel, "message": f"{rule.field}: {rule.message}"}


# Where pydantic's words are not a manifest author's.
_MESSAGES = {"extra_forbidden": "there is no such field", "missing": "this field is required"}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing wrong with a manifest. path: `spec.engine.maxModelLen`, `spec.adapters[0].name`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def field_errors(error: ValidationError, root: str = "") -> Iterator[FieldError]:
    """Everything that pydantic found, with the paths that a manifest's author knows."""
    for item in error.errors(include_url=False, include_input=False):
        parts = [*item["loc"]]
        context = item.get("ctx") or {}
        if item["type"] == "rule" and context["field"]:
            parts.append(context["field"])
        path = root
        for part in parts:
            path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
        message = _MESSAGES.get(item["type"], item["msg"])
        yield FieldError(path or "document", message.removeprefix("Value error, "))


def invalid(what: str, errors: list[FieldError]) -> ConfigError:
    """The error that a person sees: every path and message, a line each."""
    return ConfigError(f"{what} is not valid:\n" + "\n".join(f"  {each}" for each in errors))
