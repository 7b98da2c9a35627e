"""`FlexibleArgumentParser`: argparse that takes `_` for `-`, and settings from a YAML file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml


class FlexibleArgumentParser(argparse.ArgumentParser):
    """`--max_model_len` is `--max-model-len`; `--config FILE` gives defaults, as YAML or JSON.

    What stands on the command line goes before what the file says.
    """

    def parse_known_args(  # type: ignore[override]  # one signature for argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(_with_file(_dashed(given)), namespace)


def _dashed(arguments: Sequence[str]) -> list[str]:
    """Flag names with dashes; values stay as they are."""
    dashed = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        dashed.append(argument)
    return dashed


def _with_file(arguments: list[str]) -> list[str]:
    for i, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--config":
            rest = arguments[i + 1 :] if value else arguments[i + 2 :]
            path = value or "".join(arguments[i + 1 : i + 2])
            return [*_flags(Path(path)), *arguments[:i], *rest]
    return arguments


def _flags(path: Path) -> list[str]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SystemExit(f"--config {path}: {error}") from error
    if not isinstance(settings, dict):
        raise SystemExit(f"--config {path}: expected a table of settings")
    flags: list[str] = []
    for name, value in settings.items():
        flag = "--" + str(name).replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + flag.removeprefix("--"))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, str(value)]
    return flags
