"""Sampling defaults that a model ships in its generation_config.json, and who overrides them.

Later ones win: vLLM's own defaults; the file (the model's: `generation_config="auto"`, that of
another folder, or none: "vllm"); overrides. `max_new_tokens` of the model's own file is a default,
which a request may exceed; that of another folder or of an override is a hard limit for all.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams

_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "skip_special_tokens"),
)
_OVERRIDES = (*_FIELDS, "max_new_tokens")
_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """params: offline for calls without parameters; online for each field a request leaves out.

    max_tokens_cap: no request gets more output tokens; None: the context is the limit.
    """

    params: SamplingParams
    max_tokens_cap: int | None = None


def generation_defaults(
    folder: Path,
    generation_config: str | Path = "auto",
    override: Mapping[str, Any] | None = None,
) -> GenerationDefaults:
    """folder: the model's. generation_config: "auto", "vllm" or a folder. override: same keys.

    Raises `ConfigError` for a missing or damaged file, a value out of range or an override of what
    does not exist.
    """
    source: Path | None = folder
    capped = dict(override or {})
    if str(generation_config) == "vllm":
        source = None
    elif str(generation_config) != "auto":
        source = Path(generation_config)
        if not (source / _FILE).is_file():
            raise ConfigError(
                f'generation_config: {source} has no {_FILE}; write a folder that has, "auto" for '
                'the model\'s own or "vllm" for none'
            )
        capped = _read(source) | capped
    params = default_sampling_params(source, override)
    has_cap = capped.get("max_new_tokens") is not None
    return GenerationDefaults(params, params.max_tokens if has_cap else None)


def default_sampling_params(
    folder: Path | None, overrides: Mapping[str, Any] | None = None
) -> SamplingParams:
    """vLLM's defaults, with the model's own and then `overrides` (same keys) over them.

    folder: None = no model's. Raises `ConfigError` as `generation_defaults`.
    """
    for name in overrides or ():
        if name not in _OVERRIDES:
            near = difflib.get_close_matches(name, _OVERRIDES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_OVERRIDES)}"
            raise ConfigError(f"override_generation_config cannot set {name!r}; {hint}")
    raw = (_read(folder) if folder is not None else {}) | dict(overrides or {})
    given = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
    if raw.get("max_new_tokens") is not None:
        given["max_tokens"] = raw["max_new_tokens"]
    try:
        return SamplingParams(**given)
    except (ValueError, TypeError) as error:
        where = "the overrides" if folder is None else f"{folder / _FILE} or the overrides"
        raise ConfigError(f"sampling defaults of {where} cannot be used: {error}") from error


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _FILE
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} cannot be used: it holds no object")
    return raw
