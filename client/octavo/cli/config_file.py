"""`--config FILE`: flags from a YAML file, its keys being flag names. Flags given beside it win."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from octavo_protocol.errors import ConfigError

_FLAG = "--config"


def take_config(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """`arguments` without `--config FILE`, and the file. Raises `ConfigError` for two of them."""
    rest: list[str] = []
    files: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += [word, *words]
            break
        if word == _FLAG:
            if not words:
                raise ConfigError(f"{_FLAG} needs the name of a YAML file")
            files.append(words.pop(0))
        elif word.startswith(f"{_FLAG}="):
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    if len(files) > 1:
        raise ConfigError(f"{_FLAG} was given {len(files)} times; one file holds all flags")
    return rest, Path(files[0]).expanduser() if files else None


def read_settings(path: Path) -> list[tuple[str, list[str]]]:
    """(key, arguments) for each setting of the file, in its order.

    true is the flag, false its `--no-` form, a list its values, a table JSON, null nothing.
    Raises `ConfigError` that names file and key.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: expected flag names with their values, as `port: 8000`")
    return [(str(key), _arguments(path, key, value)) for key, value in settings.items()]


def _arguments(path: Path, key: Any, value: Any) -> list[str]:
    if not isinstance(key, str) or not key.strip("-"):
        raise ConfigError(f"{path}: {key!r} is not the name of a flag")
    name = key.lstrip("-").replace("_", "-")
    flag = f"--{name}"
    match value:
        case None:
            return []
        case bool():
            return [f"{flag}={str(value).lower()}"]
        case dict():
            return [f"{flag}={_json(path, key, value)}"]
        case list() if any(isinstance(each, dict | list) for each in value):
            return [f"{flag}={_json(path, key, value)}"]
        case list():
            return [f"{flag}={_text(each)}" for each in value]
        case _:
            return [f"{flag}={_text(value)}"]


def _json(path: Path, key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError as error:
        raise ConfigError(f"{path}: {key}: {error}") from error


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
