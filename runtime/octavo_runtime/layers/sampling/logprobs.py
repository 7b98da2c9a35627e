"""Log-probabilities (or logits) of a row's chosen token, of its best tokens, or of named tokens."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_runtime.config import LogprobsMode


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
    values: list[float] = own.squeeze(1).tolist()
    ranks: list[int] = ((logits > own).sum(dim=-1) + 1).tolist()
    scores = [
        TokenScores([token_id], [value], rank)
        for token_id, value, rank in zip(token_ids, values, ranks, strict=True)
    ]
    by_count: dict[int, list[int]] = {}
    for i, what in enumerate(wanted):
        if isinstance(what, list):
            scores[i] = _with_named(scores[i], logits[i], what)
        elif what != 0:
            by_count.setdefault(what, []).append(i)
    for count, members in by_count.items():
        subset = logits if len(members) == len(scores) else logits[members]
        size = logits.shape[-1]
        top = subset.topk(size if count < 0 else min(count, size), dim=-1)
        for i, ids, best in zip(members, top.indices.tolist(), top.values.tolist(), strict=True):
            first = scores[i]
            scores[i] = TokenScores(first.token_ids + ids, first.values + best, first.rank)
    return scores


def _with_named(first: TokenScores, values: Tensor, token_ids: list[int]) -> TokenScores:
    named = values[torch.tensor(token_ids, dtype=torch.int64)]
    ranks = [int((values > value).sum()) + 1 for value in named]
    return TokenScores(
        first.token_ids + token_ids,
        first.values + named.tolist(),
        first.rank,
        [first.rank, *ranks],
    )
