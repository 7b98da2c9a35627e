from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_MASK64 = (1 << 64) - 1


def sample_tokens(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    *,
    has_filters: bool = True,
) -> Tensor:
    chosen = torch.empty(len(logits), dtype=torch.int64)
    for row, values in enumerate(logits.float().cpu()):
        if temperature[row] == 0:
            chosen[row] = int(values.argmax())
            continue
        keep = torch.ones_like(values, dtype=torch.bool)
        if has_filters:
            limits = (float(temperature[row]), int(top_k[row]), float(top_p[row]))
            keep = kept(values, *limits, float(min_p[row]))
        noise = gumbel(int(seed[row]), int(position[row]), len(values))
        race = values.double() / float(temperature[row]) + noise
        chosen[row] = int(race.masked_fill(~keep, -torch.inf).argmax())
    return chosen.to(logits.device)


def kept(values: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which tokens may be drawn, by a sort. values: [vocab_size] fp32; of equals the first."""
    ranked, token_ids = values.sort(descending=True, stable=True)
    keep = ranked >= ranked[0] + temperature * torch.log(torch.tensor(min_p))
    if top_k > 0:
        keep[top_k:] = False
    if top_p < 1:
        weights = ((ranked.double() - ranked[0]) / temperature).exp() * keep
        ahead = weights.cumsum(0) - weights
        keep[1:] &= ahead[1:] < top_p * weights.sum()
    return torch.zeros_like(keep).scatter(0, token_ids, keep)


def gumbel(seed: int, position: int, count: int) -> Tensor:
    """Noise of tokens 0 to count - 1, fp64."""
    origin = _mixed(np.array([(seed + _GOLDEN * (position + 1)) & _MASK64], dtype=np.uint64))
    states = _mixed(origin + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    uniform = ((states >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    return -(-torch.from_numpy(uniform).log()).log()


def _mixed(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in _MIX:
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state ^ (state >> np.uint64(31))


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, token_ids.unsqueeze(1))
    ranks = (logprobs > own).sum(dim=-1) + 1
    values, indices = logprobs.topk(count, dim=-1)
    return own.squeeze(1), ranks, values, indices
