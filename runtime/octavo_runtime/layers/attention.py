"""Causal self-attention over the paged KV cache, with rotary positions."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.paged_attention import paged_attention
from octavo_kernels.rotary import rotary_and_cache
from octavo_runtime.layers.norm import RMSNorm


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of one layer, in the layout of `octavo_kernels.kv_cache.kv_cache_shapes`."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """What one step's forward pass needs besides weights.

    token_ids, positions: [num_tokens] int64. kv_caches: one per layer.
    cos_sin: [max_positions, head_dim] fp32 (see `rotary_table`).
    """

    token_ids: Tensor
    positions: Tensor
    attention: AttentionMetadata
    kv_caches: list[KVCache]
    cos_sin: Tensor


class PagedAttention:
    """Attention of one layer: rotates, writes the new keys and values, attends to all of them.

    query_norm, key_norm: over each head's elements, before the rotation.
    """

    def __init__(
        self,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        query_norm: RMSNorm | None = None,
        key_norm: RMSNorm | None = None,
    ) -> None:
        self.layer = layer
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self._norms: dict[str, Any] = {}
        if query_norm is not None and key_norm is not None:
            self._norms = {
                "query_norm": query_norm.weight,
                "key_norm": key_norm.weight,
                "eps": query_norm.eps,
            }

    def __call__(self, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; keys follow queries.

        Returns [num_tokens, num_heads * head_dim].
        """
        num_tokens = qkv.shape[0]
        cache = batch.kv_caches[self.layer]
        heads = qkv.view(num_tokens, -1, self.head_dim)
        last_key = self.num_heads + self.num_kv_heads
        query = heads[:, : self.num_heads]
        key, value = heads[:, self.num_heads : last_key], heads[:, last_key:]
        rotary_and_cache(
            query,
            key,
            value,
            batch.cos_sin,
            batch.positions,
            cache.key,
            cache.value,
            batch.attention.slot_mapping,
            **self._norms,
        )
        out = paged_attention(query, cache.key, cache.value, batch.attention, scale=self.scale)
        return out.view(num_tokens, self.num_heads * self.head_dim)
