"""How far one sequence is in its grammar."""

from collections.abc import Sequence

from llguidance import LLMatcher


class SequenceGrammar:
    """Grammar state of one sequence; it lasts from admission to the end, through preemptions.

    While the output is reasoning, which lasts until `reasoning_end_token_ids` were generated, the
    grammar has not begun: `is_active` is false and nothing is constrained.
    num_tokens: tokens generated so far.
    """

    def __init__(self, matcher: LLMatcher, *, reasoning_end_token_ids: Sequence[int] = ()) -> None:
        self.matcher = matcher
        self._reasoning_end = list(reasoning_end_token_ids)
        self._newest: list[int] = []
        self.num_tokens = 0
        self.is_active = not self._reasoning_end

    @property
    def is_finished(self) -> bool:
        """Nothing may follow but the end."""
        return self.is_active and self.matcher.is_stopped()

    @property
    def error(self) -> str:
        """Why the grammar cannot go on; "" while it can."""
        if not self.matcher.is_error():
            return ""
        return str(self.matcher.get_error()).partition("\n")[0]

    def advance(self, token_ids: Sequence[int]) -> None:
        """Takes generated tokens in."""
        self.num_tokens += len(token_ids)
        for token_id in token_ids:
            if self.is_active:
                self.matcher.consume_token(token_id)
            else:
                self._newest = [*self._newest, token_id][-len(self._reasoning_end) :]
                self.is_active = self._newest == self._reasoning_end
