"""Rules on single tokens: allowed ones, banned ones, biased ones, one forced one. In place."""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_runtime.layers.sampling.rows import SamplingRow


def apply_token_rules(logits: Tensor, rows: Seq[SamplingRow]) -> None:
    """Allowed tokens, bad words and `min_tokens`, then biases. logits: [num_rows, vocab_size]."""
    banned: list[int] = []
    biased: list[NDArray[np.int64]] = []
    biases: list[NDArray[np.float32]] = []
    vocab_size = logits.shape[-1]
    for i, row in enumerate(rows):
        if row.allowed is not None:
            _allow_only(logits[i], torch.from_numpy(row.allowed))
        if row.bad_words or row.num_output_tokens < row.params.min_tokens:
            banned += [i * vocab_size + token for token in row.banned_token_ids()]
        if len(row.bias_ids):
            biased.append(row.bias_ids + i * vocab_size)
            biases.append(row.bias_values)
    flat = logits.view(-1)
    if banned:
        flat[torch.tensor(banned)] = -torch.inf
    if biased:
        flat[torch.from_numpy(np.concatenate(biased))] += torch.from_numpy(np.concatenate(biases))


def force_tokens(logits: Tensor, rows: Seq[SamplingRow]) -> None:
    """Leaves one token where a thinking budget is spent."""
    for i, row in enumerate(rows):
        forced = None if row.thinking is None else row.thinking.forced_token_id
        if forced is not None:
            logits[i].fill_(-torch.inf)
            logits[i, forced] = 0.0


def _allow_only(values: Tensor, token_ids: Tensor) -> None:
    kept = values[token_ids]
    values.fill_(-torch.inf)
    values[token_ids] = kept
