"""Min-p, top-k and top-p: which tokens may be drawn."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow

# Weights are exp(logit - max); in steps of 1/64 of an exponent down to e^-32, then one bin for all.
_BINS_PER_EXPONENT, _NUM_BINS = 64, 2048


def has_top_k(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size


def apply_min_p(logits: Tensor, rows: Seq[SamplingRow]) -> None:
    """-inf, in place, where p < min_p * p_max. logits: divided by the temperature already."""
    if any(row.params.min_p > 0 for row in rows):
        min_p = torch.tensor([row.params.min_p for row in rows])
        floor = logits.amax(dim=-1, keepdim=True) + min_p.log().unsqueeze(1)
        logits.masked_fill_(logits < floor, -torch.inf)


def top_weights(
    values: Tensor, logits: Tensor, params: Seq[SamplingParams]
) -> tuple[Tensor, Tensor, list[int]]:
    """Weights of the best tokens, 0 for those that are dropped; the total weight; rows that need
    more tokens.

    values: [num_rows, width], the best of `logits`, descending. Of the top_k greatest (or of all
    tokens), the fewest whose probability reaches top_p are kept. A row needs more where all of
    `width` tokens do not reach it. total: [num_rows], of all tokens that top-k leaves.
    """
    width, vocab_size = values.shape[-1], logits.shape[-1]
    limits = torch.tensor([p.top_k if has_top_k(p, vocab_size) else width for p in params])
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float64)
    ranks = torch.arange(width)
    weights = (values - values[:, :1]).double().exp()
    weights.masked_fill_(ranks >= limits.unsqueeze(1), 0.0)
    cumulative = weights.cumsum(dim=-1)
    mass = cumulative[:, -1]
    total = mass.clone()
    narrow = [i for i, p in enumerate(params) if not has_top_k(p, vocab_size)]
    if narrow and width < vocab_size:
        every = logits if len(narrow) == len(params) else logits[narrow]
        whole = (every.logsumexp(dim=-1) - values[narrow, 0]).double().exp()
        total[narrow] = torch.maximum(mass[narrow], whole)
    reach = top_p * total
    dropped = (cumulative - weights >= reach.unsqueeze(1)) & (ranks > 0)
    weights.masked_fill_(dropped, 0.0)
    return weights, total, [i for i in narrow if bool(mass[i] < reach[i])]


def keep_nucleus(weights: Tensor, top_p: Tensor) -> None:
    """Drops, in place, all but the fewest greatest weights that reach top_p of their sum.

    weights: [num_rows, vocab_size] in [0, 1]; top_p: [num_rows] fp64. Linear in the vocabulary:
    weights are summed in bins of about equal size, and only the bin in which top_p is reached is
    sorted.
    """
    bins = (weights.log() * -_BINS_PER_EXPONENT).clamp_(0, _NUM_BINS - 1).long()
    sums = torch.zeros(len(weights), _NUM_BINS, dtype=torch.float64)
    sums.scatter_add_(1, bins, weights.double())
    cumulative = sums.cumsum(dim=-1)
    reach = top_p * cumulative[:, -1]
    last = torch.searchsorted(cumulative, reach.unsqueeze(1)).clamp_(max=_NUM_BINS - 1)
    before = (cumulative - sums).gather(1, last).squeeze(1)
    weights.masked_fill_(bins > last, 0.0)
    for i in range(len(weights)):
        at_edge = (bins[i] == last[i]).nonzero().flatten()
        order = weights[i, at_edge].double().sort(descending=True, stable=True)
        ahead = before[i] + order.values.cumsum(0) - order.values
        weights[i, at_edge[order.indices[(ahead >= reach[i]) & (ahead > 0)]]] = 0.0
