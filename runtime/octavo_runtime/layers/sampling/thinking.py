"""The budget of reasoning tokens: when it is spent, the end of the reasoning is forced."""

from collections.abc import Sequence


class ThinkingBudget:
    """Follows one sequence's reasoning, which lasts from its first token to `end_token_ids`.

    budget: tokens of reasoning after which the end tokens are forced, one after another.
    """

    __slots__ = ("_budget", "_end", "_generated", "_is_over", "_num_matched")

    def __init__(self, budget: int, end_token_ids: Sequence[int]) -> None:
        self._budget = budget
        self._end = list(end_token_ids)
        self._generated = 0
        self._num_matched = 0  # leading end tokens that stand at the end of the output
        self._is_over = not self._end

    def append(self, token_id: int) -> None:
        """Takes a generated token."""
        if self._is_over:
            return
        self._generated += 1
        self._num_matched = self._longest_match(token_id)
        self._is_over = self._num_matched == len(self._end)

    @property
    def forced_token_id(self) -> int | None:
        """The token that must come next; None where the model is free."""
        if self._is_over or self._generated < self._budget:
            return None
        return self._end[self._num_matched]

    def _longest_match(self, token_id: int) -> int:
        tail = [*self._end[: self._num_matched], token_id]
        for length in range(len(tail), 0, -1):
            if tail[-length:] == self._end[:length]:
                return length
        return 0
