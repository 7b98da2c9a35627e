"""BERT: embeddings, a classifier of sequences, a classifier of tokens.

Module and tensor names are Hugging Face's, so that weights map by name.
Source: Devlin et al. 2019, "BERT", §3; the layer is Vaswani et al. 2017's, normalised after each
residual sum.
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


class BertEmbeddings(nn.Module):
    """A token's vector is the sum of what it is, where it is and which part of a pair it is in."""

    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self._offset = encoder.position_offset
        num_positions = config.max_position_embeddings + self._offset
        self.word_embeddings = Embedding("word_embeddings", config.vocab_size, size, dtype)
        self.position_embeddings = Embedding("position_embeddings", num_positions, size, dtype)
        self.token_type_embeddings = Embedding(
            "token_type_embeddings", encoder.type_vocab_size, size, dtype
        )
        self.norm = LayerNorm("LayerNorm", size, config.norm_eps, dtype)

    def forward(self, batch: EncoderBatch) -> Tensor:
        types = (
            self.token_type_embeddings.weight[0]
            if batch.token_type_ids is None
            else self.token_type_embeddings(batch.token_type_ids)
        )
        x = self.word_embeddings(batch.token_ids) + types
        return self.norm(x, self.position_embeddings(batch.positions + self._offset))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = FusedLinear(
            size, {"query": size, "key": size, "value": size}, bias=True, dtype=dtype
        )

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        return self_attention(self.qkv(x), self.num_heads, batch)


class BertOutput(nn.Module):
    """A projection back into the residual stream, which is normalised after the sum."""

    def __init__(self, in_features: int, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = Linear("dense", in_features, size, bias=True, dtype=dtype)
        self.norm = LayerNorm("LayerNorm", size, config.norm_eps, dtype)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.norm(self.dense(x), residual)  # type: ignore[no-any-return]


class BertAttention(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, dtype)
        self.output = BertOutput(config.hidden_size, config, dtype)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        return self.output(self.self(x, batch), x)  # type: ignore[no-any-return]


class BertIntermediate(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self._form = encoder.gelu
        self.dense = Linear(
            "dense", config.hidden_size, config.intermediate_size, bias=True, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dense.gelu(x, self._form)


class BertLayer(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = BertAttention(config, dtype)
        self.intermediate = BertIntermediate(config, encoder, dtype)
        self.output = BertOutput(config.intermediate_size, config, dtype)

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        x = self.attention(x, batch)
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]


class BertEncoder(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            BertLayer(config, encoder, dtype) for _ in range(config.num_layers)
        )

    def forward(self, x: Tensor, batch: EncoderBatch) -> Tensor:
        for layer in self.layer:
            x = layer(x, batch)
        return x


class BertPooler(nn.Module):
    """What the first token's state goes through before BERT's own classifier."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.dense = Linear("dense", size, size, bias=True, dtype=dtype)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class BertModel(nn.Module):
    """forward: EncoderBatch → hidden states [num_tokens, hidden_size]; the pooler is apart."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, *, has_pooler: bool) -> None:
        super().__init__()
        if config.encoder is None:
            raise ConfigError(f"{config.architecture} is no encoder of BERT's shape")
        self.embeddings = BertEmbeddings(config, config.encoder, dtype)
        self.encoder = BertEncoder(config, config.encoder, dtype)
        self.pooler = BertPooler(config, dtype) if has_pooler else None

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.encoder(self.embeddings(batch), batch)  # type: ignore[no-any-return]


class BertForPooling(nn.Module):
    """`BertModel` and, with num_labels, `BertForSequenceClassification`.

    sentence-transformers' poolings do without BERT's own pooler.
    """

    is_encoder: ClassVar[bool] = True
    base_model_prefix: ClassVar[str] = "bert"
    classifies_tokens: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        has_pooler = num_labels > 0 and not self.classifies_tokens
        self.bert = BertModel(config, dtype, has_pooler=has_pooler)
        self.classifier = (
            Linear("classifier", config.hidden_size, num_labels, bias=True, dtype=dtype)
            if num_labels
            else None
        )

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.bert(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        assert self.classifier is not None, "only classifiers have a head"
        pooler = self.bert.pooler
        return self.classifier(pooled if pooler is None else pooler(pooled))  # type: ignore[no-any-return]


class BertForTokenClassification(BertForPooling):
    classifies_tokens: ClassVar[bool] = True
