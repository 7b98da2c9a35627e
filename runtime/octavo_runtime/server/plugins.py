"""Python files that the operator names, to add parsers of their own."""

import importlib.util

from octavo_protocol.errors import ConfigError


def load_plugin(path: str) -> None:
    """Runs the file at `path`, which adds to `TOOL_PARSERS` what it has.

    Raises `ConfigError` for a file that cannot be run.
    """
    spec = importlib.util.spec_from_file_location("octavo_tool_parser_plugin", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"the tool parser plugin {path} is no Python file")
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except Exception as error:
        raise ConfigError(f"the tool parser plugin {path} failed: {error}") from error
