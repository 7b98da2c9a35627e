"""What becomes of an engine argument that vLLM has: honoured, mere tuning, or not there yet."""

import dataclasses
import logging
from dataclasses import field
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from octavo_protocol.errors import ValidationError

logger = logging.getLogger(__name__)

_KIND, _ALLOWED = "kind", "allowed"


def honoured(default: Any) -> Any:
    """An argument that does here what it does in vLLM."""
    return _field(default, kind="honoured")


def tuning(default: Any) -> Any:
    """An argument that changes no result: it tunes what is not there, or tunes itself here."""
    return _field(default, kind="tuning")


def missing(default: Any, *also: Any) -> Any:
    """An argument for something that is not there: only its default, and `also`, are taken."""
    return _field(default, kind="missing", allowed=(default, *also))


def check_arguments(arguments: Any) -> None:
    """Raises `ValidationError` for the first argument of a wrong type or that is not there.

    Logs which ones change nothing.
    """
    ignored = []
    hints = get_type_hints(type(arguments))
    for each in dataclasses.fields(arguments):
        value = getattr(arguments, each.name)
        kind = each.metadata.get(_KIND)
        if kind != "missing" and not _fits(value, hints[each.name]):
            raise ValidationError(
                f"{each.name} must be {_text(hints[each.name])}, got {value!r}",
                parameter=each.name,
            )
        if kind == "missing" and not _is_one_of(value, each.metadata[_ALLOWED]):
            raise ValidationError(
                f"{each.name}={value!r} is not supported yet", parameter=each.name
            )
        if kind == "tuning" and value != _default(each):
            ignored.append(each.name)
    if ignored:
        logger.warning("these change nothing here: %s", ", ".join(ignored))


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of the type, or of one of the types of a union. Items are not read."""
    for member in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        kind = get_origin(member) or member
        if kind is Any:
            return True
        if isinstance(value, bool):  # which is an int, too
            if kind is bool:
                return True
        elif isinstance(value, (int, float) if kind is float else kind):
            return True
    return False


def _text(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("collections.abc.", "").replace("typing.", "")


def _field(default: Any, **metadata: Any) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _default(each: "dataclasses.Field[Any]") -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Equality that tells True from 1; an empty container is as good as None."""
    if isinstance(value, dict | list | tuple | set) and not value:
        return True
    return any(type(value) is type(each) and value == each for each in allowed)
