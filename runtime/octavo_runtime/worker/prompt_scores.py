"""Log-probabilities of prompt tokens, a chunk of the prompt at a time."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from octavo_runtime.config import LogprobsMode
from octavo_runtime.layers.sampling.logprobs import TokenScores, score
from octavo_runtime.layers.sampling.sampler import rows_per_piece


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Consecutive prompt tokens to score with one chunk's hidden states.

    offset: of the chunk's new tokens, the one before `token_ids[0]`.
    wanted: number of best tokens beside each prompt token; -1: the whole vocabulary.
    """

    offset: int
    token_ids: list[int]
    wanted: int


def score_prompt(
    hidden: Tensor,
    part: PromptPart,
    compute_logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    mode: LogprobsMode,
) -> list[TokenScores]:
    """One entry per token of `part`. hidden: [num_new_tokens, hidden_size] of the chunk.

    Logits are made for a few tokens at a time: those of a whole chunk can be gigabytes.
    """
    scores: list[TokenScores] = []
    size = rows_per_piece(vocab_size)
    for start in range(0, len(part.token_ids), size):
        token_ids = part.token_ids[start : start + size]
        first = part.offset + start
        logits = compute_logits(hidden[first : first + len(token_ids)]).float()
        scores += score(logits, token_ids, [part.wanted] * len(token_ids), mode)
    return scores
