"""The factors of `expected-ttft`, and the file that sets them.

    uncached: 4        # price of a prompt token that is not cached, in queued tokens
    recent: 0.05       # price of a prompt token that was sent there in the last minute
    running: 1         # price of a running sequence, in its share of a decode step
    adapter: 4         # price of a second in which the replica loads the request's adapter
    tie_ms: 1          # costs this close to the best count as equal

What is left out keeps its default. Measured defaults: docs/benchmarks.md, "Routing policies".
"""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from octavo_protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PolicyWeights:
    """All at least 0; see the module."""

    uncached: float = 4.0
    recent: float = 0.05
    running: float = 1.0
    adapter: float = 4.0
    tie_ms: float = 1.0


DEFAULT_WEIGHTS = PolicyWeights()
_NAMES = tuple(field.name for field in fields(PolicyWeights))


def read_weights(path: Path) -> PolicyWeights:
    """The weights of a YAML file. Raises `ConfigError` that says what to write instead."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the policy weights {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the policy weights {path} are not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: write one `name: number` a line; names are {', '.join(_NAMES)}")
    return PolicyWeights(**{_name(name, path): _weight(name, data[name], path) for name in data})


def _name(name: object, path: Path) -> str:
    if name not in _NAMES:
        raise ConfigError(f"{path}: there is no weight {name!r}; there are {', '.join(_NAMES)}")
    return str(name)


def _weight(name: str, value: Any, path: Path) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        default = getattr(DEFAULT_WEIGHTS, name, None)
        raise ConfigError(
            f"{path}: {name} must be a number from 0, such as {default:g}, not {value!r}"
        )
    return float(value)
