"""Hidden states to what requests ask for: vectors, classes or scores."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from octavo_runtime.pooling import TOKEN_TASKS, PoolingConfig, PoolPart


class Pooler:
    """head: rows [n, hidden_size] to logits [n, num_labels], of models that classify."""

    def __init__(
        self, config: PoolingConfig, head: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self._config = config
        self._head = head

    def __call__(self, hidden: Tensor, parts: Sequence[PoolPart]) -> list[Tensor]:
        """One tensor per part: [size], and [num_tokens, size] of token-level tasks.

        hidden: [num_rows, hidden_size].
        """
        return [self._pool(hidden[part.start : part.stop], part) for part in parts]

    def _pool(self, rows: Tensor, part: PoolPart) -> Tensor:
        params = part.params
        pooled = rows if params.task in TOKEN_TASKS else self._summary(rows)
        use_activation = params.use_activation
        if use_activation is None:
            use_activation = self._config.use_activation
        if params.task in ("embed", "token_embed"):
            vectors = pooled.float()[..., : params.dimensions]
            return functional.normalize(vectors, dim=-1) if use_activation else vectors
        assert self._head is not None
        logits = self._head(pooled).float()
        return torch.softmax(logits, -1) if use_activation else logits

    def _summary(self, rows: Tensor) -> Tensor:
        kind = self._config.seq_pooling_type
        if kind == "MEAN":
            return rows.float().mean(0)
        return rows[0] if kind == "CLS" else rows[-1]
