"""ModernBERT: rotary positions, norms before each part, a gated MLP, and layers that see only a
window around each token between those that see the whole prompt.

Module and tensor names are Hugging Face's, so that weights map by name.
Source: Warner et al. 2024, "Smarter, Better, Faster, Longer", §2.1.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from octavo_kernels.activation import gelu_and_mul
from octavo_kernels.encoder_attention import encoder_attention
from octavo_protocol.errors import ConfigError
from octavo_runtime.encoder_config import EncoderConfig, ModernBertConfig
from octavo_runtime.layers.encoder_batch import EncoderBatch
from octavo_runtime.layers.linear import Embedding, Linear
from octavo_runtime.layers.norm import LayerNorm
from octavo_runtime.layers.rotary import rotary_table, rotated
from octavo_runtime.model_config import ModelConfig, RopeConfig


class ModernBertEmbeddings(nn.Module):
    def __init__(self, config: ModelConfig, modern: ModernBertConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        self.tok_embeddings = Embedding("tok_embeddings", config.vocab_size, size, dtype)
        self.norm = LayerNorm("norm", size, config.norm_eps, dtype, bias=modern.norm_bias)

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.norm(self.tok_embeddings(batch.token_ids))  # type: ignore[no-any-return]


class ModernBertAttention(nn.Module):
    """window: positions that a token sees on either side; None: all."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, window: int | None) -> None:
        super().__init__()
        size, bias = config.hidden_size, config.attention_bias
        self.num_heads = config.num_heads
        self.window = window
        self.qkv = Linear("Wqkv", size, 3 * size, bias=bias, dtype=dtype)
        self.out = Linear("Wo", size, size, bias=bias, dtype=dtype)

    def forward(self, x: Tensor, batch: EncoderBatch, cos_sin: Tensor) -> Tensor:
        heads = self.qkv(x).view(x.shape[0], 3 * self.num_heads, -1)
        query, key, value = heads.chunk(3, dim=1)
        attended = encoder_attention(
            rotated(query, cos_sin),
            rotated(key, cos_sin),
            value.contiguous(),
            batch.query_start_loc,
            max_query_len=batch.max_seq_len,
            scale=query.shape[-1] ** -0.5,
            window=self.window,
        )
        return self.out(attended.flatten(1))  # type: ignore[no-any-return]


class ModernBertMLP(nn.Module):
    def __init__(self, config: ModelConfig, encoder: EncoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self._form = encoder.gelu
        self.gate_up = Linear("Wi", size, 2 * inner, bias=bias, dtype=dtype)
        self.down = Linear("Wo", inner, size, bias=bias, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu_and_mul(self.gate_up(x), self._form))  # type: ignore[no-any-return]


class ModernBertLayer(nn.Module):
    """The first one takes what the embeddings have normalised."""

    def __init__(
        self,
        config: ModelConfig,
        encoder: EncoderConfig,
        modern: ModernBertConfig,
        dtype: torch.dtype,
        number: int,
    ) -> None:
        super().__init__()
        size, eps, bias = config.hidden_size, config.norm_eps, modern.norm_bias
        self.is_global = modern.is_global[number]
        window = None if self.is_global else modern.window
        self.attn_norm = (
            LayerNorm("attn_norm", size, eps, dtype, bias=bias) if number else nn.Identity()
        )
        self.attn = ModernBertAttention(config, dtype, window)
        self.mlp_norm = LayerNorm("mlp_norm", size, eps, dtype, bias=bias)
        self.mlp = ModernBertMLP(config, encoder, dtype)

    def forward(self, x: Tensor, batch: EncoderBatch, cos_sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), batch, cos_sin)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class ModernBertModel(nn.Module):
    """forward: EncoderBatch → hidden states [num_tokens, hidden_size]."""

    def __init__(
        self,
        config: ModelConfig,
        encoder: EncoderConfig,
        modern: ModernBertConfig,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.embeddings = ModernBertEmbeddings(config, modern, dtype)
        self.layers = nn.ModuleList(
            ModernBertLayer(config, encoder, modern, dtype, number)
            for number in range(config.num_layers)
        )
        self.final_norm = LayerNorm(
            "final_norm", config.hidden_size, config.norm_eps, dtype, bias=modern.norm_bias
        )
        self._tables = {
            is_global: rotary_table(
                RopeConfig(theta, {}), config.head_dim, config.max_position_embeddings
            )
            for is_global, theta in ((True, modern.global_theta), (False, modern.local_theta))
        }

    def forward(self, batch: EncoderBatch) -> Tensor:
        cos_sin = {kind: table[batch.positions] for kind, table in self._tables.items()}
        x = self.embeddings(batch)
        for layer in self.layers:
            x = layer(x, batch, cos_sin[layer.is_global])  # type: ignore[index]
        return self.final_norm(x)  # type: ignore[no-any-return]


class ModernBertForPooling(nn.Module):
    """`ModernBertModel` and, with num_labels, its classifiers of sequences and of tokens."""

    is_encoder: ClassVar[bool] = True
    base_model_prefix: ClassVar[str] = "model"

    def __init__(self, config: ModelConfig, dtype: torch.dtype, num_labels: int) -> None:
        super().__init__()
        encoder = config.encoder
        if encoder is None or encoder.modern is None:
            raise ConfigError(f"{config.architecture} is no encoder of ModernBERT's shape")
        self.model = ModernBertModel(config, encoder, encoder.modern, dtype)
        self._form = "tanh" if encoder.modern.classifier_gelu == "tanh" else "none"
        if num_labels:
            size, modern = config.hidden_size, encoder.modern
            # `head.` is in their names: the module's own `head` is the method.
            self.head_dense = Linear(
                "head.dense", size, size, bias=modern.classifier_bias, dtype=dtype
            )
            self.head_norm = LayerNorm(
                "head.norm", size, config.norm_eps, dtype, bias=modern.norm_bias
            )
            self.classifier = Linear("classifier", size, num_labels, bias=True, dtype=dtype)

    def forward(self, batch: EncoderBatch) -> Tensor:
        return self.model(batch)  # type: ignore[no-any-return]

    def head(self, pooled: Tensor) -> Tensor:
        """pooled: [n, hidden_size] → logits [n, num_labels]."""
        activated = gelu(self.head_dense(pooled), approximate=self._form)
        return self.classifier(self.head_norm(activated))  # type: ignore[no-any-return]
