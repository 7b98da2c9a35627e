"""Errors on their way from the engine process to the API side: a kind and a message."""

from octavo_protocol import errors
from octavo_protocol.errors import OctavoError


def kind_of(error: BaseException) -> str:
    """The name of its class; empty for an error that is none of Octavo's."""
    kind = type(error)
    return kind.__name__ if getattr(errors, kind.__name__, None) is kind else ""


def error_of(kind: str, message: str, default: type[OctavoError]) -> OctavoError:
    """The error that had `kind_of` it; of the default class where that is empty."""
    return (getattr(errors, kind) if kind else default)(message)
