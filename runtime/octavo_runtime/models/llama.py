"""Llama and the models of its shape (Llama 2/3, SmolLM2, Mistral without a sliding window).

Module and tensor names are Hugging Face's, so that weights map by name. On a rank of a group, the
configuration is that of its shards (`ModelShards.local_config`).
Source: Touvron et al. 2023, "LLaMA", §2.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.layers.attention import ForwardBatch, PagedAttention
from octavo_runtime.layers.linear import Embedding, FusedLinear, OutputHead, SummedLinear
from octavo_runtime.layers.norm import RMSNorm
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import ALONE, Group


class LlamaAttention(nn.Module):
    """Grouped-query attention. A subclass may give `attention` norms of queries and keys."""

    def __init__(
        self, config: ModelConfig, layer: int, dtype: torch.dtype, group: Group = ALONE
    ) -> None:
        super().__init__()
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.qkv_proj = FusedLinear(
            config.hidden_size,
            {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size},
            bias=config.attention_bias,
            dtype=dtype,
        )
        self.o_proj = SummedLinear(
            "o_proj",
            q_size,
            config.hidden_size,
            bias=config.attention_bias,
            dtype=dtype,
            group=group,
        )
        self.attention = PagedAttention(
            layer, config.num_heads, config.num_kv_heads, config.head_dim
        )

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        return self.o_proj(self.attention(self.qkv_proj(x), batch))  # type: ignore[no-any-return]


class LlamaMLP(nn.Module):
    def __init__(self, config: ModelConfig, dtype: torch.dtype, group: Group) -> None:
        super().__init__()
        size = config.intermediate_size
        self.gate_up_proj = FusedLinear(
            config.hidden_size,
            {"gate_proj": size, "up_proj": size},
            bias=config.mlp_bias,
            dtype=dtype,
        )
        self.down_proj = SummedLinear(
            "down_proj",
            size,
            config.hidden_size,
            bias=config.mlp_bias,
            dtype=dtype,
            group=group,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate_up_proj.silu_and_mul(x))  # type: ignore[no-any-return]


class LlamaDecoderLayer(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        dtype: torch.dtype,
        attention: type[LlamaAttention],
        group: Group,
    ) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.input_layernorm = RMSNorm("input_layernorm", size, eps, dtype)
        self.self_attn = attention(config, layer, dtype, group)
        self.post_attention_layernorm = RMSNorm("post_attention_layernorm", size, eps, dtype)
        self.mlp = LlamaMLP(config, dtype, group)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """(output, residual): the output is added to the residual stream by the next norm."""
        x, residual = self.input_layernorm(x, residual)
        x = self.self_attn(x, batch)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


class LlamaModel(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        attention: type[LlamaAttention],
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding("embed_tokens", config.vocab_size, config.hidden_size, dtype)
        self.layers = nn.ModuleList(
            LlamaDecoderLayer(config, layer, dtype, attention, group)
            for layer in range(config.num_layers)
        )
        self.norm = RMSNorm("norm", config.hidden_size, config.norm_eps, dtype)

    def forward(self, batch: ForwardBatch) -> Tensor:
        x, residual = self.embed_tokens(batch.token_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        return self.norm(x, residual)[0]  # type: ignore[no-any-return]


class LlamaForCausalLM(nn.Module):
    """forward: ForwardBatch → hidden states [num_tokens, hidden_size].

    attention_class: what models of this shape differ in.
    """

    attention_class: ClassVar[type[LlamaAttention]] = LlamaAttention

    def __init__(self, config: ModelConfig, dtype: torch.dtype, group: Group = ALONE) -> None:
        super().__init__()
        if config.sliding_window is not None:
            raise ConfigError(
                f"sliding_window={config.sliding_window} is not supported by this attention yet"
            )
        self.model = LlamaModel(config, dtype, self.attention_class, group)
        self.lm_head = OutputHead(
            config.vocab_size,
            config.hidden_size,
            dtype,
            tied_to=self.model.embed_tokens if config.tie_word_embeddings else None,
            group=group,
        )

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.model(batch)  # type: ignore[no-any-return]

    @contextmanager
    def only_first_layer(self) -> Iterator[None]:
        """Inside, `forward` leaves out all layers but the first, which launches what they do."""
        layers = self.model.layers
        self.model.layers = layers[:1]
        try:
            yield
        finally:
            self.model.layers = layers

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] → [num_rows, vocab_size] in the model's dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]
