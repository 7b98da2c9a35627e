"""A draw of each row from the distribution that the filters leave.

Tokens race: each has a time that is exponentially distributed with its probability as the rate, and
the first one wins (the Gumbel-max trick; Gumbel 1954, Maddison et al. 2014). The noise is a hash of
(seed, output position, token): no state survives between steps, so preemption, batching and another
replica all continue with the same draws. And where rounding in another batch moves probabilities a
little, the same token wins but for as small a chance; inverting the cumulative distribution at one
random point, rounding would add up along the vocabulary. Source of the hash: splitmix64 (Steele et
al. 2014).

Only the best tokens of a row race one by one, all others together as one:

    top_k       the best 64, 256, 1024, …, cut to k
    else        the best 256, and the rest if top_p does not end among them; when the rest wins,
                its blocks of 1024 tokens race, then the tokens of the block that won

What is done to a row depends on its own parameters and logits alone, never on the other rows.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.filters import has_top_k, keep_nucleus, top_weights
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.top_tokens import top_tokens

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_BLOCK = 1024
_TOP_K_WIDTH, _HEAD_WIDTH = 64, 256


def uniforms(rows: Seq[SamplingRow], token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in (0, 1), functions of (seed, output position, token id) alone.

    token_ids: [len(rows), n] → [len(rows), n]. Numbers from the vocabulary's size on stand for
    groups of tokens.
    """
    origins = np.array(
        [(row.seed + _GOLDEN * (row.num_output_tokens + 1)) & _MASK64 for row in rows], np.uint64
    )
    steps = (token_ids + 1).astype(np.uint64) * np.uint64(_GOLDEN)
    state = _mixed(_mixed(origins)[:, None] + steps)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / (1 << 53)


def draw_tokens(logits: Tensor, rows: Seq[SamplingRow], *, keep_filtered: bool) -> list[int]:
    """One token per row. logits: [num_rows, vocab_size] fp32, divided by the temperature.

    keep_filtered: what top-k and top-p drop becomes -inf in `logits`, for `processed_*` modes.
    """
    by_width: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_width.setdefault(_width(row.params, logits.shape[-1]), []).append(i)
    token_ids = [0] * len(rows)
    for width, members in by_width.items():
        subset = logits if len(members) == len(rows) else logits[members]
        drawn = _draw(subset, [rows[i] for i in members], width, keep_filtered=keep_filtered)
        if keep_filtered and subset is not logits:
            logits[members] = subset
        for i, token_id in zip(members, drawn, strict=True):
            token_ids[i] = token_id
    return token_ids


def _width(params: SamplingParams, vocab_size: int) -> int:
    """How many of the best tokens race one by one; a function of the row alone."""
    if not has_top_k(params, vocab_size):
        return min(_HEAD_WIDTH, vocab_size)
    width = _TOP_K_WIDTH
    while width < params.top_k:
        width *= 4
    return min(width, vocab_size)


def _draw(logits: Tensor, rows: Seq[SamplingRow], width: int, *, keep_filtered: bool) -> list[int]:
    values, head = top_tokens(logits, width)
    weights, total, too_few = top_weights(values, logits, [row.params for row in rows])
    lead, place = (weights.log() + _noise(rows, head.numpy())).max(dim=-1)
    drawn: list[int] = head.gather(1, place.unsqueeze(1)).flatten().tolist()
    if keep_filtered:
        ended = [i for i in range(len(rows)) if i not in too_few]
        dropped = values[ended].masked_fill(weights[ended] == 0, -torch.inf)
        logits[ended] = torch.full_like(logits[ended], -torch.inf).scatter_(1, head[ended], dropped)
    if too_few:
        subset, best = logits[too_few], head[too_few]
        late = _race_of_rest(
            subset,
            best,
            [rows[i] for i in too_few],
            (total - weights.sum(dim=-1))[too_few],
            lead[too_few],
            keep_filtered=keep_filtered,
        )
        if keep_filtered:
            logits[too_few] = subset
        for place_of_row, token_id in late.items():
            drawn[too_few[place_of_row]] = token_id
    return drawn


def _race_of_rest(
    logits: Tensor,
    head: Tensor,
    rows: Seq[SamplingRow],
    rest: Tensor,
    lead: Tensor,
    *,
    keep_filtered: bool,
) -> dict[int, int]:
    """Tokens outside the head that win, by row.

    head: [num_rows, width], the best tokens. rest: [num_rows] fp64, weight of all others before
    top-p. lead: [num_rows] fp64, how far the head's winner came.
    """
    cut = [i for i, row in enumerate(rows) if row.params.top_p < 1]
    if cut:
        tails = _tails(logits[cut], head[cut], [rows[i].params.top_p for i in cut])
        rest[cut] = tails.double().sum(dim=-1)
        if keep_filtered:
            dropped = (tails == 0).scatter_(1, head[cut], False)
            logits[cut] = logits[cut].masked_fill(dropped, -torch.inf)
    everyone = np.full((len(rows), 1), logits.shape[-1], dtype=np.int64)
    ahead = rest.log() + _noise(rows, everyone).squeeze(1) > lead
    won = [i for i, yes in enumerate(ahead.tolist()) if yes]
    if not won:
        return {}
    tails = _tails(logits[won], head[won], [rows[i].params.top_p for i in won])
    drawn = _race_by_blocks(tails, [rows[i] for i in won])
    # Where the head has all the weight there is, what `rest` has is rounding.
    has_tail = (tails.amax(dim=-1) > 0).tolist()
    return {i: token for i, token, yes in zip(won, drawn, has_tail, strict=True) if yes}


def _tails(logits: Tensor, head: Tensor, top_p: Seq[float]) -> Tensor:
    """Weights of the tokens outside the head that top-p leaves; 0 for all others.

    [num_rows, vocab_size] fp32, relative to the best token's.
    """
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    cut = [i for i, p in enumerate(top_p) if p < 1]
    if cut:
        nucleus = weights[cut]
        keep_nucleus(nucleus, torch.tensor([top_p[i] for i in cut], dtype=torch.float64))
        weights[cut] = nucleus
    return weights.scatter_(1, head, 0.0)


def _noise(rows: Seq[SamplingRow], token_ids: NDArray[np.int64]) -> Tensor:
    """Gumbel noise of each token, fp64; log(weight) + noise is greatest for the race's winner."""
    return torch.from_numpy(-np.log(-np.log(uniforms(rows, token_ids))))


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for shift, factor in _MIX:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))


def _race_by_blocks(weights: Tensor, rows: Seq[SamplingRow]) -> list[int]:
    """The winner of each row: first blocks of tokens race, then the tokens of the one that won.

    weights: [num_rows, vocab_size] fp32, none of which has raced before.
    """
    num_rows, size = weights.shape
    blocks = F.pad(weights, (0, -size % _BLOCK)).view(num_rows, -1, _BLOCK)
    numbers = np.arange(size + 1, size + 1 + blocks.shape[1], dtype=np.int64)
    block_noise = _noise(rows, np.tile(numbers, (num_rows, 1)))
    block = (blocks.sum(dim=-1).double().log() + block_noise).argmax(dim=-1)
    inside = blocks[torch.arange(num_rows), block].double()
    token_ids = block.unsqueeze(1) * _BLOCK + torch.arange(_BLOCK)
    place = (inside.log() + _noise(rows, token_ids.numpy())).argmax(dim=-1, keepdim=True)
    drawn: list[int] = token_ids.gather(1, place).flatten().tolist()
    return drawn
