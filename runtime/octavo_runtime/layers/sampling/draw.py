"""A token of each row: the best one, or a draw from the distribution that the filters leave.

A draw inverts the cumulative distribution at one uniform number per row, which is a hash of
(seed, output position): no state survives between steps, so preemption, batching and another
replica all continue with the same draws. What is done to a row depends on its own parameters
alone, never on the other rows. Source of the hash: splitmix64 (Steele et al. 2014).

Rows with top-k or top-p are drawn from their best tokens, without sorting the vocabulary:

    top_k           the best k (as many as the width, a power of 4 times 64, then cut)
    top_p alone     the best 256; 4096, …, all, where those have less than top_p of the mass
    neither         all tokens, in two levels: a block of 1024 tokens, then a token of the block
"""

from collections.abc import Sequence as Seq

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow

_MASK64 = (1 << 64) - 1
_BLOCK = 1024
_TOP_K_WIDTH, _TOP_P_WIDTH = 64, 256
_WHOLE = 0  # the width of rows without top-k and top-p
_BELOW_1 = 1 - 2**-53


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1) that is a function of (seed, position) alone."""
    state = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK64
    state ^= state >> 31
    return ((state >> 11) + 0.5) / (1 << 53)


def best_tokens(logits: Tensor) -> list[int]:
    """Index of each row's greatest value; the first of equals. logits: [num_rows, vocab_size]."""
    if logits.device.type == "cpu":
        best: list[int] = logits.numpy().argmax(axis=-1).tolist()  # vectorised, unlike torch's
        return best
    return logits.argmax(dim=-1).tolist()


def apply_min_p(logits: Tensor, rows: Seq[SamplingRow]) -> None:
    """-inf, in place, where p < min_p * p_max. logits: divided by the temperature already."""
    if any(row.params.min_p > 0 for row in rows):
        min_p = torch.tensor([0.0 if r.params.is_greedy else r.params.min_p for r in rows])
        floor = logits.amax(dim=-1, keepdim=True) + min_p.log().unsqueeze(1)
        logits.masked_fill_(logits < floor, -torch.inf)


def draw_tokens(logits: Tensor, rows: Seq[SamplingRow], *, keep_filtered: bool) -> list[int]:
    """One token per row. logits: [num_rows, vocab_size] fp32, divided by the temperature.

    keep_filtered: what top-k and top-p drop becomes -inf in `logits`, for `processed_*` modes.
    """
    vocab_size = logits.shape[-1]
    by_width: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_width.setdefault(_width(row.params, vocab_size), []).append(i)
    token_ids = [0] * len(rows)
    while by_width:
        width, members = by_width.popitem()
        subset = logits if len(members) == len(rows) else logits[members]
        chosen = [rows[i] for i in members]
        too_narrow: list[int] = []
        points = torch.tensor(
            [uniform(row.seed, row.num_output_tokens) for row in chosen], dtype=torch.float64
        ).unsqueeze(1)
        if width == _WHOLE:
            drawn = _draw_from_all(subset, points)
        else:
            values, candidates = subset.topk(width, dim=-1)
            weights, too_narrow = _filtered(values, subset, [row.params for row in chosen])
            drawn = candidates.gather(1, _invert(weights, points)[0]).flatten().tolist()
            if keep_filtered:
                values = values.masked_fill(weights == 0, -torch.inf)
                kept = torch.full_like(subset, -torch.inf).scatter_(1, candidates, values)
                done = [i for i in range(len(members)) if i not in too_narrow]
                logits[[members[i] for i in done]] = kept[done]
        for i, token_id in zip(members, drawn, strict=True):
            token_ids[i] = token_id
        if too_narrow:
            wider = min(width * 16, vocab_size)
            by_width.setdefault(wider, []).extend(members[i] for i in too_narrow)
    return token_ids


def _width(params: SamplingParams, vocab_size: int) -> int:
    """How many of the best tokens to look at first; a function of the row alone."""
    if 0 < params.top_k < vocab_size:
        width = _TOP_K_WIDTH
        while width < params.top_k:
            width *= 4
        return min(width, vocab_size)
    return min(_TOP_P_WIDTH, vocab_size) if params.top_p < 1 else _WHOLE


def _filtered(
    values: Tensor, logits: Tensor, params: Seq[SamplingParams]
) -> tuple[Tensor, list[int]]:
    """Weights of the best tokens, 0 for the dropped ones; and the rows that need more of them.

    values: [num_rows, width], descending. Of the top_k greatest (or of all tokens), the fewest
    whose probability reaches top_p are kept.
    """
    width, vocab_size = values.shape[-1], logits.shape[-1]
    has_top_k = torch.tensor([0 < p.top_k < vocab_size for p in params])
    limits = torch.tensor([p.top_k if 0 < p.top_k < vocab_size else width for p in params])
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64)
    ranks = torch.arange(width)
    weights = (values - values[:, :1]).double().exp()
    weights.masked_fill_(ranks >= limits.unsqueeze(1), 0.0)
    cumulative = weights.cumsum(dim=-1)
    mass = cumulative[:, -1]
    total = mass.clone()
    narrow = ~has_top_k & (top_p < 1) & (width < vocab_size)
    if bool(narrow.any()):
        everything = (logits[narrow].logsumexp(dim=-1) - values[narrow, 0]).double().exp()
        total[narrow] = torch.maximum(mass[narrow], everything)
    reach = top_p * total
    is_short = narrow & (mass < reach)
    dropped = (cumulative - weights >= reach.unsqueeze(1)) & (ranks > 0)
    weights.masked_fill_(dropped, 0.0)
    return weights, is_short.nonzero().flatten().tolist()


def _draw_from_all(logits: Tensor, points: Tensor) -> list[int]:
    num_rows, vocab_size = logits.shape
    num_blocks = -(-vocab_size // _BLOCK)
    weights = logits - logits.amax(dim=-1, keepdim=True)
    weights.exp_()
    if vocab_size % _BLOCK:
        weights = F.pad(weights, (0, num_blocks * _BLOCK - vocab_size))
    blocks = weights.view(num_rows, num_blocks, _BLOCK)
    block, inside = _invert(blocks.sum(dim=-1).double(), points)
    within = blocks[torch.arange(num_rows), block.squeeze(1)].double()
    offset, _ = _invert(within, inside)
    token_ids: list[int] = (block * _BLOCK + offset).clamp_(max=vocab_size - 1).flatten().tolist()
    return token_ids


def _invert(weights: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative weights pass `points` of their total, and how far inside that interval.

    weights: [num_rows, n] fp64; points: [num_rows, 1] in [0, 1) → index and place, [num_rows, 1].
    `right`: the point lies strictly inside the chosen interval, so weight 0 (an empty interval) is
    never chosen.
    """
    cumulative = weights.cumsum(dim=-1)
    points = points * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, points, right=True).clamp_(max=weights.shape[-1] - 1)
    weight = weights.gather(1, index)
    inside = 1 - (cumulative.gather(1, index) - points) / weight
    return index, inside.clamp(0.0, _BELOW_1)
