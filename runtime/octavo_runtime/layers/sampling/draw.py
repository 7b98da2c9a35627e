"""A draw of each row from the distribution that the filters leave.

A draw inverts the cumulative distribution at one uniform number per row, which is a hash of
(seed, output position): no state survives between steps, so preemption, batching and another
replica all continue with the same draws. What is done to a row depends on its own parameters
alone, never on the other rows. Source of the hash: splitmix64 (Steele et al. 2014).

Rows with top-k or top-p are drawn from their best tokens, where those are enough:

    top_k           the best 64, 256, 1024, …, cut to k
    top_p alone     the best 256, where those have top_p of the mass; else as below, after a cut
    neither         all tokens, in two levels: a block of 1024 tokens, then a token of the block

Each way finds the same token, but for rounding.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.filters import has_top_k, keep_nucleus, top_weights
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.top_tokens import top_tokens

_MASK64 = (1 << 64) - 1
_BLOCK = 1024
_TOP_K_WIDTH, _TOP_P_WIDTH = 64, 256
_WHOLE = 0  # the width of rows that look at every token
_BELOW_1 = 1 - 2**-53


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1) that is a function of (seed, position) alone."""
    state = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK64
    state ^= state >> 31
    return ((state >> 11) + 0.5) / (1 << 53)


def draw_tokens(logits: Tensor, rows: Seq[SamplingRow], *, keep_filtered: bool) -> list[int]:
    """One token per row. logits: [num_rows, vocab_size] fp32, divided by the temperature.

    keep_filtered: what top-k and top-p drop becomes -inf in `logits`, for `processed_*` modes.
    """
    by_width: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_width.setdefault(_width(row.params, logits.shape[-1]), []).append(i)
    whole = by_width.pop(_WHOLE, [])
    token_ids = [0] * len(rows)
    for width, members in by_width.items():
        subset = _rows_of(logits, members)
        points = _points(rows, members)
        drawn, too_few = _draw_from_best(
            subset, width, points, [rows[i].params for i in members], keep_filtered
        )
        if keep_filtered and subset is not logits:
            logits[members] = subset
        for i, token_id in zip(members, drawn, strict=True):
            token_ids[i] = token_id
        whole += [members[i] for i in too_few]
    if whole:
        subset = _rows_of(logits, whole)
        top_p = [rows[i].params.top_p for i in whole]
        drawn = _draw_from_all(subset, _points(rows, whole), top_p, keep_filtered)
        if keep_filtered and subset is not logits:
            logits[whole] = subset
        for i, token_id in zip(whole, drawn, strict=True):
            token_ids[i] = token_id
    return token_ids


def _rows_of(logits: Tensor, members: list[int]) -> Tensor:
    return logits if members == list(range(len(logits))) else logits[members]


def _points(rows: Seq[SamplingRow], members: list[int]) -> Tensor:
    numbers = [uniform(rows[i].seed, rows[i].num_output_tokens) for i in members]
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def _width(params: SamplingParams, vocab_size: int) -> int:
    """How many of the best tokens to look at; a function of the row alone."""
    if has_top_k(params, vocab_size):
        width = _TOP_K_WIDTH
        while width < params.top_k:
            width *= 4
        return min(width, vocab_size)
    return min(_TOP_P_WIDTH, vocab_size) if params.top_p < 1 else _WHOLE


def _draw_from_best(
    logits: Tensor,
    width: int,
    points: Tensor,
    params: Seq[SamplingParams],
    keep_filtered: bool,
) -> tuple[list[int], list[int]]:
    """A token of each row, and the rows for which `width` tokens are too few (not theirs then)."""
    values, candidates = top_tokens(logits, width)
    weights, too_few = top_weights(values, logits, params)
    # In the order of their ids, not of their ranks: a last bit that differs between batches then
    # moves no token to another place.
    in_order, order = candidates.sort(dim=-1)
    place, _ = _invert(weights.gather(1, order), points)
    drawn: list[int] = in_order.gather(1, place).flatten().tolist()
    if keep_filtered:
        kept = torch.full_like(logits, -torch.inf)
        kept.scatter_(1, candidates, values.masked_fill(weights == 0, -torch.inf))
        enough = [i for i in range(len(logits)) if i not in too_few]
        logits[enough] = kept[enough]
    return drawn, too_few


def _draw_from_all(
    logits: Tensor, points: Tensor, top_p: list[float], keep_filtered: bool
) -> list[int]:
    num_rows, vocab_size = logits.shape
    num_blocks = -(-vocab_size // _BLOCK)
    padded = logits.new_empty(num_rows, num_blocks * _BLOCK)
    padded[:, vocab_size:] = 0.0
    weights = padded[:, :vocab_size]
    # Where every token is forbidden, the greatest value is -inf, and its difference no number.
    greatest = logits.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    torch.sub(logits, greatest, out=weights)
    weights.exp_()
    cut = [i for i, p in enumerate(top_p) if p < 1]
    if cut:
        nucleus = weights[cut]
        keep_nucleus(nucleus, torch.tensor([top_p[i] for i in cut], dtype=torch.float64))
        weights[cut] = nucleus
        if keep_filtered:
            logits.masked_fill_(weights == 0, -torch.inf)
    blocks = padded.view(num_rows, num_blocks, _BLOCK)
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
