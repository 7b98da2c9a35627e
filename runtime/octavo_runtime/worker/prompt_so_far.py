"""What later steps need of the hidden states of a prompt's earlier chunks."""

import torch
from torch import Tensor

from octavo_runtime.pooling import TOKEN_TASKS, SequencePooling


class PromptSoFar:
    """Takes a prompt's chunks in order; `whole` then gives rows to pool as if they were all.

    pooling of   kept                  whole
    LAST         the newest row        that row
    CLS          the first row         that row
    MEAN         sum in fp32, count    one row, the mean
    tokens       all chunks            all rows
    """

    def __init__(self, task: str | None, pooling_type: SequencePooling) -> None:
        self._kind = "ALL" if task in TOKEN_TASKS else pooling_type
        self._kept: list[Tensor] = []
        self._num_rows = 0

    def add(self, hidden: Tensor) -> None:
        """hidden: [num_new_tokens, hidden_size] of the next chunk, which may be reused after."""
        self._num_rows += len(hidden)
        match self._kind:
            case "ALL":
                self._kept.append(hidden.clone())
            case "CLS":
                self._kept = self._kept or [hidden[:1].clone()]
            case "MEAN":
                rows = hidden.float().sum(0, keepdim=True)
                self._kept = [self._kept[0] + rows if self._kept else rows]
            case _:
                self._kept = [hidden[-1:].clone()]

    def whole(self) -> Tensor:
        """[num_rows, hidden_size]."""
        rows = torch.cat(self._kept) if len(self._kept) > 1 else self._kept[0]
        return rows / self._num_rows if self._kind == "MEAN" else rows
