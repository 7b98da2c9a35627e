"""A user's logits processor: `extra_args={"only": token}` leaves one token."""

from typing import Any

import torch

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.processors import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)


def only_token(params: SamplingParams) -> int | None:
    return (params.extra_args or {}).get("only")


class OnlyToken(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        only = only_token(sampling_params)
        if only is not None and not isinstance(only, int):
            raise ValueError(f"only must be a token id, got {only!r}")

    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        self.tokens: dict[int, int | None] = {}
        self.num_updates = 0

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        self.num_updates += 1
        for index in batch_update.removed:
            del self.tokens[index]
        for index, params, _, _ in batch_update.added:
            self.tokens[index] = only_token(params)
        for source, target, how in batch_update.moved:
            if how is MoveDirectionality.SWAP:
                self.tokens[source], self.tokens[target] = self.tokens[target], self.tokens[source]
            else:
                self.tokens[target] = self.tokens.pop(source)
        assert sorted(self.tokens) == list(range(batch_update.batch_size))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(self.tokens)
        for index, token_id in self.tokens.items():
            if token_id is not None:
                kept = logits[index, token_id].clone()
                logits[index] = -torch.inf
                logits[index, token_id] = kept
        return logits


class KeepsBest(OnlyToken):
    """Leaves the best token of every row: greedy rows need not see it."""

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        best = logits.amax(dim=-1, keepdim=True)
        return logits.masked_fill(logits < best, -torch.inf)
