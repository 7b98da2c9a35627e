"""Which class defines which architecture."""

import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.llama import LlamaForCausalLM

_ARCHITECTURES = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
}


def build_model(config: ModelConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model with empty weights. Raises `ConfigError` for an unknown architecture."""
    if config.architecture not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ConfigError(
            f"architecture {config.architecture!r} is not supported yet; these are: {known}"
        )
    return _ARCHITECTURES[config.architecture](config, dtype)
