"""What `LLM.score` takes for a text of a pair."""

from collections.abc import Mapping
from typing import Any

from octavo_protocol.errors import ValidationError


def text_of(name: str, data: Any) -> str:
    """The text in a string, in `{"prompt": ...}` or in `{"content": [parts]}`. name: the argument.

    Raises TypeError for what is none of these, `ValidationError` for parts that are no text.
    """
    if isinstance(data, str):
        return data
    if isinstance(data, Mapping):
        if isinstance(data.get("prompt"), str):
            return str(data["prompt"])
        if isinstance(data.get("content"), list):
            return "\n".join(_text_of_part(name, part) for part in data["content"])
    raise TypeError(f"{name} must be texts, which are read in pairs; this is {type(data).__name__}")


def _text_of_part(name: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValidationError(
            f"{name} has a part {kind!r}: models here read text only", parameter=name
        )
    return str(part["text"])
