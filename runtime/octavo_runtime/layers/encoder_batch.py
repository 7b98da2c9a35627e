"""What one step's forward pass of an encoder needs besides weights."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncoderBatch:
    """Whole prompts, one after the other, without padding and without a KV cache.

        prompt           |   0       |   1   |        2         |
        token_ids        | a0 a1 a2  | b0 b1 | c0  c1  c2  c3   |
        positions        |  0  1  2  |  0  1 |  0   1   2   3   |
        query_start_loc  0           3       5                  9

    token_ids, positions: [num_tokens] int32 or int64. token_type_ids: alike; None: all 0.
    query_start_loc: [num_prompts + 1] int32; a prompt may be empty.
    max_seq_len: tokens of the longest prompt.
    """

    token_ids: Tensor
    positions: Tensor
    token_type_ids: Tensor | None
    query_start_loc: Tensor
    max_seq_len: int
