"""Logits to tokens, in vLLM's order.

raw log-probabilities → allowed tokens, bad words, `min_tokens`, biases, processors that change the
best token → penalties → thinking budget → greedy choice, or temperature → min-p, other processors
→ top-k, top-p → draw.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_runtime.config import LogprobsMode
from octavo_runtime.layers.sampling.draw import draw_tokens
from octavo_runtime.layers.sampling.filters import apply_min_p
from octavo_runtime.layers.sampling.logprobs import TokenScores, score
from octavo_runtime.layers.sampling.penalties import apply_penalties
from octavo_runtime.layers.sampling.processors import LogitsProcessors
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.token_rules import apply_token_rules, force_tokens
from octavo_runtime.layers.sampling.top_tokens import best_token

# Rows are sampled a few at a time, so that what is made on the way stays in the processor's cache.
_PIECE_ELEMENTS = 2**21


@dataclass(frozen=True, slots=True)
class SampledRow:
    """scores: of the sampled token and of those that the request asked for."""

    token_id: int
    scores: TokenScores | None = None


class Sampler:
    """processors: the engine-wide logits processors."""

    def __init__(
        self,
        logprobs_mode: LogprobsMode = "raw_logprobs",
        processors: LogitsProcessors | None = None,
    ) -> None:
        self.logprobs_mode = logprobs_mode
        self._processors = processors

    def sample(self, logits: Tensor, rows: Seq[SamplingRow]) -> list[SampledRow]:
        """One token per row. logits: [len(rows), vocab_size], any float dtype; changed in place.

        A row's token depends on that row alone. Rows are not changed: `append` is the caller's.
        """
        size = rows_per_piece(logits.shape[-1])
        if self._processors is not None:
            self._processors.update(rows)
            size = len(rows)  # they number the rows of the whole batch
        sampled: list[SampledRow] = []
        for start in range(0, len(rows), size):
            piece = logits[start : start + size].float().contiguous()
            sampled += self._sample(piece, rows[start : start + size])
        return sampled

    def _sample(self, logits: Tensor, rows: Seq[SamplingRow]) -> list[SampledRow]:
        wants = [i for i, row in enumerate(rows) if row.wanted_logprobs is not None]
        is_raw = self.logprobs_mode.startswith("raw")
        raw = _copy_of(logits, wants) if wants and is_raw else None
        apply_token_rules(logits, rows)
        if self._processors is not None:
            logits = self._processors.apply(logits, is_argmax_invariant=False)
        apply_penalties(logits, rows)
        force_tokens(logits, rows)
        token_ids = self._choose(logits, rows, keep_filtered=bool(wants) and not is_raw)
        sampled = [SampledRow(token_id) for token_id in token_ids]
        if wants:
            scores = score(
                logits[wants] if raw is None else raw,
                [token_ids[i] for i in wants],
                [what for row in rows if (what := row.wanted_logprobs) is not None],
                self.logprobs_mode,
            )
            for i, each in zip(wants, scores, strict=True):
                sampled[i] = SampledRow(token_ids[i], each)
        return sampled

    def _choose(self, logits: Tensor, rows: Seq[SamplingRow], *, keep_filtered: bool) -> list[int]:
        drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        token_ids = best_token(logits) if len(drawn) < len(rows) else [0] * len(rows)
        if not drawn:
            return token_ids
        temperatures = [1.0 if row.params.is_greedy else row.params.temperature for row in rows]
        logits.div_(torch.tensor(temperatures).unsqueeze(1))
        apply_min_p(logits, rows)
        if self._processors is not None:
            logits.copy_(self._processors.apply(logits, is_argmax_invariant=True))
        subset = logits if len(drawn) == len(rows) else logits[drawn]
        chosen = draw_tokens(subset, [rows[i] for i in drawn], keep_filtered=keep_filtered)
        if keep_filtered and subset is not logits:
            logits[drawn] = subset
        for i, token_id in zip(drawn, chosen, strict=True):
            token_ids[i] = token_id
        return token_ids


def rows_per_piece(vocab_size: int) -> int:
    """Rows of logits to work on at a time."""
    return max(1, _PIECE_ELEMENTS // vocab_size)


def _copy_of(logits: Tensor, members: list[int]) -> Tensor:
    return logits.clone() if len(members) == len(logits) else logits[members]
