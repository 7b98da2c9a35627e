"""The base of every object in a request body: what it does not know, it refuses by name."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from octavo_protocol.errors import ValidationError

_MAX_SHOWN_CHARS = 80


def unknown_field(name: str, known: Iterable[str]) -> ValidationError:
    """The complaint about a field that does not exist, with the nearest one that does."""
    shown = name if len(name) <= _MAX_SHOWN_CHARS else name[:_MAX_SHOWN_CHARS] + "..."
    near = difflib.get_close_matches(shown, list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ValidationError(f"unknown field {shown!r}{hint}", parameter=shown)


class Strict(BaseModel):
    """Only the first unknown field is reported: a complaint for each of a million of them would
    hold the server for long (see `lists.List`).
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = {info.alias or name for name, info in cls.model_fields.items()}
            for name in data:
                if name not in known:
                    raise unknown_field(str(name), known)
        return data
