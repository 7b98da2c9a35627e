"""Log-probabilities (or logits) of a row's chosen token, of its best tokens, or of named tokens."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_runtime.config import LogprobsMode
from octavo_runtime.layers.sampling.top_tokens import top_tokens


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The chosen token first, then those asked for. rank 1 is the best of the vocabulary.

    token_ids, values: [1 + num_wanted]. ranks: of all entries; None where the entries after the
    first are ranked 1, 2, 3, …
    """

    token_ids: list[int]
    values: list[float]
    rank: int
    ranks: list[int] | None = None


def score(
    logits: Tensor,
    token_ids: Seq[int],
    wanted: Seq[int | list[int]],
    mode: LogprobsMode = "raw_logprobs",
) -> list[TokenScores]:
    """What a caller asked to know of each row.

    logits: [num_rows, vocab_size] fp32. token_ids: the chosen token of each row. wanted: of each
    row a number of best tokens (-1: the whole vocabulary), or exactly these tokens.
    """
    if mode.endswith("logprobs"):
        logits = logits.log_softmax(dim=-1)
    own = logits.gather(1, torch.tensor(token_ids).unsqueeze(1))
    values: list[float] = own.flatten().tolist()
    scores: dict[int, TokenScores] = {}
    by_count: dict[int, list[int]] = {}
    for i, what in enumerate(wanted):
        if isinstance(what, list):
            scores[i] = _named(logits[i], [token_ids[i], *what])
        else:
            by_count.setdefault(len(logits[i]) if what < 0 else what, []).append(i)
    for count, members in by_count.items():
        subset = logits if len(members) == len(token_ids) else logits[members]
        # The best one at least: a token that is as good has rank 1, and none is counted.
        best, indices = top_tokens(subset, max(1, min(count, subset.shape[-1])))
        ahead = best > own[members]
        num_ahead: list[int] = ahead.sum(dim=-1).tolist()
        for i, row, better, ids, top in zip(
            members, subset, num_ahead, indices.tolist(), best.tolist(), strict=True
        ):
            rank = better + 1 if better < len(top) else _rank(row, values[i])
            scores[i] = TokenScores([token_ids[i], *ids[:count]], [values[i], *top[:count]], rank)
    return [scores[i] for i in range(len(token_ids))]


def _named(values: Tensor, token_ids: list[int]) -> TokenScores:
    named: list[float] = values[torch.tensor(token_ids)].tolist()
    ranks = [_rank(values, value) for value in named]
    return TokenScores(token_ids, named, ranks[0], ranks)


def _rank(values: Tensor, value: float) -> int:
    """1 for the best: how many of the row are better, and one."""
    return int((values > value).sum()) + 1
