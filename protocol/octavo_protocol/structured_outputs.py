"""`StructuredOutputsParams`: what shape an output must have. Names and rules are vLLM's."""

import json as _json
from collections.abc import Iterator
from typing import Any

import msgspec

from octavo_protocol.errors import ValidationError

MAX_JSON_DEPTH = 64
MAX_STRUCTURAL_TAG_DEPTH = 80
_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class StructuredOutputsParams(msgspec.Struct, omit_defaults=True):
    """Exactly one constraint, and how to read it.

    json: a JSON schema, as text or dict. regex: the whole output matches it. choice: the output is
    one of these strings. grammar: Lark or EBNF (GBNF). json_object: True for any JSON object.
    structural_tag: JSON text of a structural tag (free text in which tagged parts are constrained).
    disable_any_whitespace: compact JSON only. whitespace_pattern: regex for the space between JSON
    tokens. disable_additional_properties: objects have only the properties that the schema names.

    Raises `ValidationError` for none or several constraints and for malformed ones; whether a
    schema or grammar compiles is found out when a request with it is taken.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    structural_tag: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise _error(
                f"give exactly one of {', '.join(_CONSTRAINTS)}; got {', '.join(given) or 'none'}"
            )
        if self.json is not None:
            _check_json("json", self.json, MAX_JSON_DEPTH)
        if self.structural_tag is not None:
            _check_json("structural_tag", self.structural_tag, MAX_STRUCTURAL_TAG_DEPTH)
        if self.regex is not None:
            _check_text("regex", self.regex)
            if "\0" in self.regex:
                raise _error("regex must not contain NUL")
        if self.grammar is not None:
            _check_text("grammar", self.grammar)
        if self.choice is not None and not (
            isinstance(self.choice, list)
            and self.choice
            and all(isinstance(text, str) for text in self.choice)
        ):
            raise _error("choice must be a non-empty list of strings")
        if self.json_object is not None and self.json_object is not True:
            raise _error("json_object must be true; leave it out otherwise")
        if self.whitespace_pattern is not None:
            _check_text("whitespace_pattern", self.whitespace_pattern)

    @property
    def kind(self) -> str:
        """The name of the one constraint that is given."""
        return next(name for name in _CONSTRAINTS if getattr(self, name) is not None)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _error(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise _error(f"{name} must not be blank")


def _check_json(name: str, value: Any, max_depth: int) -> None:
    if isinstance(value, type):
        raise _error(f"{name} must be a schema, not a class: give its model_json_schema()")
    if not isinstance(value, dict):
        _check_text(name, value)
        try:
            value = _json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _error(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict | bool):
        raise _error(f"{name} must be a JSON object, got {type(value).__name__}")
    if is_deeper(value, max_depth):
        raise _error(f"{name} is nested deeper than {max_depth} levels")


def is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects stand in each other more than `limit` levels below `value`."""
    return any(depth > limit for depth, _ in enumerate(nesting(value)))


def nesting(value: Any) -> Iterator[list[Any]]:
    """`value`, then the lists and objects in it, then those in them, level by level."""
    level = [value]
    while level:
        yield level
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _error(message: str) -> ValidationError:
    return ValidationError(f"structured_outputs: {message}", parameter="structured_outputs")
