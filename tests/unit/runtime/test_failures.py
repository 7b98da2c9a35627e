"""Errors of the engine process keep their kind on the API side."""

import pytest

from octavo_protocol.errors import (
    AdapterNotFoundError,
    GenerationError,
    OctavoError,
    UnavailableError,
    ValidationError,
)
from octavo_runtime.engine.failures import error_of, kind_of


class OwnError(OctavoError):
    """Of a module that the other side may not have."""


@pytest.mark.parametrize("kind", [AdapterNotFoundError, UnavailableError, ValidationError])
def test_error_is_rebuilt_as_it_was(kind: type[OctavoError]) -> None:
    found = error_of(kind_of(kind("why")), "why", GenerationError)

    assert type(found) is kind
    assert found.message == "why"


@pytest.mark.parametrize("error", [RuntimeError("why"), OwnError("why")])
def test_error_of_no_known_class_becomes_the_default(error: Exception) -> None:
    found = error_of(kind_of(error), "why", GenerationError)

    assert type(found) is GenerationError
