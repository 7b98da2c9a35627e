"""Self-attention of an encoder's layer, from the fused projections to the heads side by side."""

from torch import Tensor

from octavo_kernels.encoder_attention import encoder_attention
from octavo_runtime.layers.encoder_batch import EncoderBatch


def self_attention(qkv: Tensor, num_heads: int, batch: EncoderBatch) -> Tensor:
    """Every token of a prompt sees all of that prompt.

    qkv: [num_tokens, 3 * hidden_size], queries, keys, values → [num_tokens, hidden_size]
    """
    heads = qkv.view(qkv.shape[0], 3 * num_heads, -1)
    query, key, value = heads.chunk(3, dim=1)
    attended = encoder_attention(
        query,
        key,
        value,
        batch.query_start_loc,
        max_query_len=batch.max_seq_len,
        scale=query.shape[-1] ** -0.5,
    )
    return attended.flatten(1)
