"""Decoders that pool: the body of a generating model, and a score head where it classifies."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.linear import Embedding, Linear
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.llama import LlamaAttention, LlamaModel
from octavo_runtime.models.qwen3 import Qwen3Attention


class TokenHead(nn.Module):
    """Logits of a few tokens as classes: rows of the output matrix, which may be the embedding.

    is_difference: one class, the second token's logit less the first's.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        token_ids: Sequence[int],
        dtype: torch.dtype,
        *,
        is_difference: bool,
        tied_to: Embedding | None,
    ) -> None:
        super().__init__()
        self._token_ids = list(token_ids)
        self._is_difference = is_difference
        self._tied_to = (tied_to,)  # in a tuple: not a submodule, its weights are loaded there
        self._matrix = None if tied_to else torch.empty(shape, dtype=dtype)
        self._rows: Tensor | None = None

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        if self._matrix is not None:
            yield f"{prefix}lm_head.weight", self._matrix

    def pack(self) -> None:
        (embedding,) = self._tied_to
        matrix = self._matrix if embedding is None else embedding.weight
        assert matrix is not None, "pack() is called once"
        rows = matrix[self._token_ids]
        self._rows = rows[1:] - rows[:1] if self._is_difference else rows
        self._matrix = None

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self._rows is not None, "pack() comes before the first step"
        return nn.functional.linear(pooled, self._rows)


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
        self.score = self._score_head(config, dtype, num_labels) if num_labels else None

    def _score_head(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> nn.Module:
        hints = config.pooling
        if not hints.classifier_token_ids:
            return Linear("score", config.hidden_size, num_labels, bias=False, dtype=dtype)
        return TokenHead(
            (config.vocab_size, config.hidden_size),
            hints.classifier_token_ids,
            dtype,
            is_difference=hints.is_token_difference,
            tied_to=self.model.embed_tokens if config.tie_word_embeddings else None,
        )

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self.score is not None, "only classifiers have a head"
        return self.score(pooled)  # type: ignore[no-any-return]


class Qwen3ForPooling(LlamaForPooling):
    attention_class: ClassVar[type[LlamaAttention]] = Qwen3Attention
