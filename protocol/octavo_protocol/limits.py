"""Limits of requests that operators raise with the variables that vLLM reads."""

import os

from octavo_protocol.errors import ConfigError


def limit(variable: str, default: int) -> int:
    """The number in the environment's `variable`. Raises `ConfigError` for anything below 1."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not (text.isdecimal() and int(text)):
        raise ConfigError(f"{variable} must be a positive whole number, not {text!r}")
    return int(text)
