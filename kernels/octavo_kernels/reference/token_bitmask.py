from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def apply_token_bitmask(logits: Tensor, bitmask: Tensor, rows: Sequence[int]) -> None:
    vocab_size = logits.shape[-1]
    shifts = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    allowed = (bitmask.unsqueeze(-1) >> shifts & 1).flatten(1).bool()[:, :vocab_size]
    missing = vocab_size - allowed.shape[1]
    allowed = torch.nn.functional.pad(allowed, (0, missing))
    for row, is_allowed in zip(rows, allowed, strict=True):
        logits[row].masked_fill_(~is_allowed, -torch.inf)
