"""Which class defines which architecture."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.llama import LlamaForCausalLM
from octavo_runtime.models.qwen3 import Qwen3ForCausalLM

_ARCHITECTURES: dict[str, Callable[..., Any] | str] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def supported_architectures() -> frozenset[str]:
    return frozenset(_ARCHITECTURES)


def register_architecture(name: str, model: Callable[..., Any] | str) -> None:
    """Makes `name` run with `model`, a class like `LlamaForCausalLM` or its "module:Class"."""
    _ARCHITECTURES[name] = model


def build_model(config: ModelConfig, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model with empty weights. Raises `ConfigError` for an unknown architecture."""
    if config.architecture not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ConfigError(
            f"architecture {config.architecture!r} is not supported yet; these are: {known}"
        )
    model = _ARCHITECTURES[config.architecture]
    if isinstance(model, str):
        module, _, name = model.partition(":")
        model = getattr(importlib.import_module(module), name)
    built: LlamaForCausalLM = model(config, dtype)
    return built
