"""Sampling defaults that a model ships in its generation_config.json."""

import json
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def default_sampling_params(folder: Path) -> SamplingParams:
    """vLLM's defaults with the model's own over them. Raises `ConfigError` for a damaged file."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return SamplingParams()
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        given = {name: raw[name] for name in _FIELDS if raw.get(name) is not None}
        if raw.get("max_new_tokens") is not None:
            given["max_tokens"] = raw["max_new_tokens"]
        return SamplingParams(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
