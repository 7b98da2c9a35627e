"""Which class defines which architecture."""

import importlib
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from octavo_protocol.errors import ConfigError
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.bert import BertForPooling, BertForTokenClassification
from octavo_runtime.models.distilbert import (
    DistilBertForPooling,
    DistilBertForTokenClassification,
)
from octavo_runtime.models.llama import LlamaForCausalLM
from octavo_runtime.models.modernbert import ModernBertForPooling
from octavo_runtime.models.pooling_decoder import LlamaForPooling, Qwen3ForPooling
from octavo_runtime.models.qwen3 import Qwen3ForCausalLM
from octavo_runtime.models.roberta import RobertaForPooling, RobertaForTokenClassification
from octavo_runtime.parallel.group import ALONE, Group

_ARCHITECTURES: dict[str, Callable[..., Any] | str] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}
# What pools, by the class that its checkpoint names.
_POOLING: dict[str, Callable[..., Any]] = {
    "BertModel": BertForPooling,
    "BertForSequenceClassification": BertForPooling,
    "BertForTokenClassification": BertForTokenClassification,
    "DistilBertModel": DistilBertForPooling,
    "DistilBertForSequenceClassification": DistilBertForPooling,
    "DistilBertForTokenClassification": DistilBertForTokenClassification,
    "ModernBertModel": ModernBertForPooling,
    "ModernBertForSequenceClassification": ModernBertForPooling,
    "ModernBertForTokenClassification": ModernBertForPooling,
    "RobertaModel": RobertaForPooling,
    "RobertaForSequenceClassification": RobertaForPooling,
    "RobertaForTokenClassification": RobertaForTokenClassification,
    "XLMRobertaModel": RobertaForPooling,
    "XLMRobertaForSequenceClassification": RobertaForPooling,
    "XLMRobertaForTokenClassification": RobertaForTokenClassification,
    "LlamaModel": LlamaForPooling,
    "LlamaForSequenceClassification": LlamaForPooling,
    "MistralModel": LlamaForPooling,
    "MistralForSequenceClassification": LlamaForPooling,
    "Qwen3Model": Qwen3ForPooling,
    "Qwen3ForSequenceClassification": Qwen3ForPooling,
}
# What generates, and pools where it is converted.
_CONVERTED: dict[str, Callable[..., Any]] = {
    "LlamaForCausalLM": LlamaForPooling,
    "MistralForCausalLM": LlamaForPooling,
    "Qwen3ForCausalLM": Qwen3ForPooling,
}


class PoolingModel(Protocol):
    """A model that pools, an `nn.Module`; made with (config, dtype, num_labels).

    is_encoder: it takes `EncoderBatch`es of whole prompts and has no KV cache; else
    `ForwardBatch`es. base_model_prefix: of the names of its body's weights, where the checkpoint is
    not of the bare body. num_labels: 0 = it gives vectors.
    """

    is_encoder: ClassVar[bool]
    base_model_prefix: ClassVar[str]

    def __call__(self, batch: Any) -> Tensor:
        """Hidden states [num_tokens, hidden_size]."""

    def head(self, pooled: Tensor) -> Tensor:
        """Of classifiers: pooled rows [n, hidden_size] → logits [n, num_labels]."""


def pooling_architectures() -> frozenset[str]:
    """Those that can do nothing else."""
    return frozenset(_POOLING)


def pooling_model_class(architecture: str) -> Any:
    """A `PoolingModel`. Raises `ConfigError` for an architecture that cannot pool."""
    known = _POOLING | _CONVERTED
    if architecture not in known:
        raise ConfigError(
            f"architecture {architecture!r} cannot pool here; these can: {', '.join(sorted(known))}"
        )
    return known[architecture]


def supported_architectures() -> frozenset[str]:
    return frozenset(_ARCHITECTURES)


def register_architecture(name: str, model: Callable[..., Any] | str) -> None:
    """Makes `name` run with `model`, a class like `LlamaForCausalLM` or its "module:Class"."""
    _ARCHITECTURES[name] = model


def build_model(config: ModelConfig, dtype: torch.dtype, group: Group = ALONE) -> LlamaForCausalLM:
    """The model with empty weights; of one rank, `config` being that of its shards.

    Raises `ConfigError` for an unknown architecture, and for one that cannot be divided.
    """
    if config.architecture not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise ConfigError(
            f"architecture {config.architecture!r} is not supported yet; these are: {known}"
        )
    model = _ARCHITECTURES[config.architecture]
    if isinstance(model, str):
        module, _, name = model.partition(":")
        model = getattr(importlib.import_module(module), name)
    if group.size == 1:
        return model(config, dtype)  # type: ignore[no-any-return]
    if not (isinstance(model, type) and issubclass(model, LlamaForCausalLM)):
        raise ConfigError(
            f"{config.architecture} cannot be divided among ranks: its class is none of "
            "LlamaForCausalLM's kind. Set tensor_parallel_size to 1"
        )
    return model(config, dtype, group)
