"""Sampling defaults that a model ships in its generation_config.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams

_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "skip_special_tokens"),
)


def default_sampling_params(
    folder: Path | None, overrides: Mapping[str, Any] | None = None
) -> SamplingParams:
    """vLLM's defaults, with the model's own and then `overrides` (same keys) over them.

    folder: None = no model's. Raises `ConfigError` for a damaged file or a value out of range.
    """
    path = (folder or Path()) / "generation_config.json"
    try:
        raw: dict[str, Any] = {}
        if folder is not None and path.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
        raw = {**raw, **(overrides or {})}
        given = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
        if raw.get("max_new_tokens") is not None:
            given["max_tokens"] = raw["max_new_tokens"]
        return SamplingParams(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
