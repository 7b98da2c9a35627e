"""DistilBERT: BERT's layer without parts of a pair and without a pooler, under names of its own.

Module and tensor names are Hugging Face's, so that weights map by name.
Source: Sanh et al. 2019, "DistilBERT", §2.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.encoder_config import EncoderConfig
from octavo_runtime.layers.encoder_attention import self_attention
from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.layers.linear import Embedding, FusedLinear, Linear
from octavo_runtime.layers.norm import LayerNorm
from octavo_runtime.model_config import ModelConfig


class DistilBertEmbeddings(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = Embedding("word_embeddings", config.vocab_size, size, dtype)
        self.position_embeddings = Embedding(
            "position_embeddings", config.max_position_embeddings, size, dtype
        )
        self.norm = LayerNorm("LayerNorm", size, config.norm_eps, dtype)

    def forward(self, batch: EncoderBatch) -> Tensor:
        words = self.word_embeddings(batch.token_ids)
        return self.norm(words, self.position_embeddings(batch.positions))  # type: ignore[no-any-return]


class DistilBertAttention(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        parts = dict.fromkeys(("q_lin", "k_lin", "v_lin"), size)
        self.qkv = FusedLinear(size, parts, bias=True, dtype=dtype)
        self.out = Linear("out_lin", size, size, bias=True, dtype=dtype)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        return self.out(self_attention(self.qkv(x), self.num_heads, batch))  # type: ignore[no-any-return]


class DistilBertFFN(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self._form = encoder.gelu
        self.lin1 = Linear("lin1", size, inner, bias=True, dtype=dtype)
        self.lin2 = Linear("lin2", inner, size, bias=True, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.lin1.gelu(x, self._form))  # type: ignore[no-any-return]


class DistilBertBlock(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.attention = DistilBertAttention(config, dtype)
        self.attention_norm = LayerNorm("sa_layer_norm", size, eps, dtype)
        self.ffn = DistilBertFFN(config, encoder, dtype)
        self.output_norm = LayerNorm("output_layer_norm", size, eps, dtype)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        x = self.attention_norm(self.attention(x, batch), x)
        return self.output_norm(self.ffn(x), x)  # type: ignore[no-any-return]


class DistilBertTransformer(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            DistilBertBlock(config, encoder, dtype) for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        for layer in self.layer:
            x = layer(x, batch)
        return x


class DistilBertModel(nn.Module):
    """forward: EncoderBatch → hidden states [num_tokens, hidden_size]."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        if config.encoder is None:
            raise ConfigError(f"{config.architecture} is no encoder of BERT's shape")
        self.embeddings = DistilBertEmbeddings(config, dtype)
        self.transformer = DistilBertTransformer(config, config.encoder, dtype)

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.transformer(self.embeddings(batch), batch)  # type: ignore[no-any-return]


class DistilBertForPooling(nn.Module):
    """`DistilBertModel` and, with num_labels, `DistilBertForSequenceClassification`."""

    is_encoder: ClassVar[bool] = True
    base_model_prefix: ClassVar[str] = "distilbert"
    classifies_tokens: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.distilbert = DistilBertModel(config, dtype)
        self.pre_classifier: nn.Module | None = None
        self.classifier: nn.Module | None = None
        if num_labels:
            self.classifier = Linear("classifier", size, num_labels, bias=True, dtype=dtype)
        if num_labels and not self.classifies_tokens:
            self.pre_classifier = Linear("pre_classifier", size, size, bias=True, dtype=dtype)

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.distilbert(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self.classifier is not None, "only classifiers have a head"
        if self.pre_classifier is not None:
            pooled = torch.relu(self.pre_classifier(pooled))
        return self.classifier(pooled)  # type: ignore[no-any-return]


class DistilBertForTokenClassification(DistilBertForPooling):
    classifies_tokens: ClassVar[bool] = True
