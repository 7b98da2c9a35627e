"""How flags are declared and read: an environment variable for each, sizes as people write them."""

import json
import re
from typing import Any

import typer

JSON_METAVAR = "JSON"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)[bB]?")
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def option(flag: str, *more: str, help: str, **settings: Any) -> Any:
    """A `typer.Option` that can also be set as OCTAVO_<FLAG> in the environment."""
    if "min" in settings:
        settings.setdefault("metavar", "NUMBER")
    name = flag.split("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(flag, *more, help=help, envvar=f"OCTAVO_{name}", **settings)


def size_option(flag: str, *, help: str, **settings: Any) -> Any:
    """An option whose value may be written as 4096, 4k, 4K, 4Ki or 1.5G."""
    return option(flag, help=help, **{"parser": parse_size, "metavar": "SIZE", **settings})


def parse_size(text: str | int) -> int:
    """`4k` is 4000; `4K`, `4Ki` and `4KiB` are 4096 (vLLM's reading of k and K).

    Raises `typer.BadParameter`.
    """
    if isinstance(text, int):  # a default
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 4096, 4k, 4Ki or 1.5G")
    number, unit, is_binary = match.groups()
    if not unit and is_binary:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 4Ki")
    base = 1024 if is_binary or unit.isupper() else 1000
    value = float(number) * base ** _POWERS.get(unit.lower(), 0)
    if value != int(value):
        raise typer.BadParameter(f"{text!r} is not a whole number")
    return int(value)


def json_option(flag: str, *more: str, help: str, **settings: Any) -> Any:
    """An option whose value is a JSON table."""
    return option(flag, *more, help=help, parser=parse_table, metavar=JSON_METAVAR, **settings)


def parse_table(text: str | dict[str, Any]) -> dict[str, Any]:
    """A JSON object. Raises `typer.BadParameter`."""
    if isinstance(text, dict):  # a default
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f'{text!r} is not a table; write for example {{"key": 1}}')
    return value


def parse_length(text: str | int) -> int:
    """A size in tokens; -1 or `auto`: as many as fit. Raises `typer.BadParameter`."""
    return -1 if text in (-1, "-1", "auto") else parse_size(text)
