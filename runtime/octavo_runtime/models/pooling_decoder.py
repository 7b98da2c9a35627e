"""Decoders that pool: the body of a generating model, and a score head where it classifies."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.linear import Linear
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.llama import LlamaAttention, LlamaModel
from octavo_runtime.models.qwen3 import Qwen3Attention


class LlamaForPooling(nn.Module):
    """forward: ForwardBatch → hidden states [num_tokens, hidden_size].

    num_labels: of the score head; 0: there is none.
    """

    is_encoder: ClassVar[bool] = False
    base_model_prefix: ClassVar[str] = "model"
    attention_class: ClassVar[type[LlamaAttention]] = LlamaAttention

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        if config.sliding_window is not None:
            raise ConfigError(
                f"sliding_window={config.sliding_window} is not supported by this attention yet"
            )
        self.model = LlamaModel(config, dtype, self.attention_class)
        self.score = (
            Linear("score", config.hidden_size, num_labels, bias=False, dtype=dtype)
            if num_labels
            else None
        )

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self.score is not None, "only classifiers have a head"
        return self.score(pooled)  # type: ignore[no-any-return]


class Qwen3ForPooling(LlamaForPooling):
    attention_class: ClassVar[type[LlamaAttention]] = Qwen3Attention
