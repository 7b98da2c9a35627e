"""Qwen3 (dense): Llama with an RMSNorm over each query and key head.

Source: Yang et al. 2025, "Qwen3 Technical Report", §2.
"""

from typing import ClassVar

import torch

from octavo_runtime.layers.attention import PagedAttention
from octavo_runtime.layers.norm import RMSNorm
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.llama import LlamaAttention, LlamaForCausalLM
from octavo_runtime.parallel.group import ALONE, Group


class Qwen3Attention(LlamaAttention):
    def __init__(
        self, config: ModelConfig, layer: int, dtype: torch.dtype, group: Group = ALONE
    ) -> None:
        super().__init__(config, layer, dtype, group)
        self.q_norm = RMSNorm("q_norm", config.head_dim, config.norm_eps, dtype)
        self.k_norm = RMSNorm("k_norm", config.head_dim, config.norm_eps, dtype)
        self.attention = PagedAttention(
            layer,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            query_norm=self.q_norm,
            key_norm=self.k_norm,
        )


class Qwen3ForCausalLM(LlamaForCausalLM):
    attention_class: ClassVar[type[LlamaAttention]] = Qwen3Attention
