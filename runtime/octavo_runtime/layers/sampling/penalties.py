"""Repetition, frequency and presence penalties, in place, for all rows at once.

Sources: CTRL §4.1 (repetition; on prompt and output), OpenAI's API reference (frequency and
presence; on the output).
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from octavo_runtime.layers.sampling.rows import SamplingRow


def apply_penalties(logits: Tensor, rows: Seq[SamplingRow]) -> None:
    """logits: [num_rows, vocab_size] fp32. Touches only the tokens that the histories hold."""
    vocab_size = logits.shape[-1]
    histories = [(i, row, row.history) for i, row in enumerate(rows) if row.history is not None]
    if not histories:
        return
    places = np.concatenate([history.token_ids + i * vocab_size for i, _, history in histories])
    counts = torch.from_numpy(np.concatenate([history.counts for _, _, history in histories]))
    lengths = [len(history.token_ids) for _, _, history in histories]
    strengths = np.array(
        [
            (r.params.repetition_penalty, r.params.frequency_penalty, r.params.presence_penalty)
            for _, r, _ in histories
        ],
        dtype=np.float32,
    )
    repetition, frequency, presence = torch.from_numpy(np.repeat(strengths, lengths, axis=0)).T
    flat, index = logits.view(-1), torch.from_numpy(places)
    values = flat[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    flat[index] = values - frequency * counts - presence * (counts > 0)
