from __future__ import annotations

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
    """Which tokens may be drawn, by a sort. values: [vocab_size]."""
    ranked = values.sort(descending=True).values
    floor = ranked[0] + temperature * torch.log(torch.tensor(min_p))
    if 0 < top_k < len(values):
        floor = torch.maximum(floor, ranked[top_k - 1])
    left = ranked[ranked >= floor].double()
    weights = ((left - left[0]) / temperature).exp()
    reached = weights.cumsum(0) >= top_p * weights.sum()
    if top_p < 1 and reached.any():
        floor = torch.maximum(floor, left[reached][0].float())
    return values >= floor


def gumbel(seed: int, position: int, count: int) -> Tensor:
    """Noise of tokens 0 to count - 1, fp64."""
    origin = _mixed((seed + _GOLDEN * (position + 1)) & _MASK64)
    states = [_mixed((origin + _GOLDEN * (token + 1)) & _MASK64) for token in range(count)]
    uniform = (torch.tensor([state >> 11 for state in states], dtype=torch.float64) + 0.5) / 2**53
    return -(-uniform.log()).log()


def _mixed(state: int) -> int:
    for shift, factor in _MIX:
        state = ((state ^ (state >> shift)) * factor) & _MASK64
    return state ^ (state >> 31)


def gather_logprobs(
    logits: Tensor, token_ids: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, token_ids.unsqueeze(1))
    ranks = (logprobs > own).sum(dim=-1) + 1
    values, indices = logprobs.topk(count, dim=-1)
    return own.squeeze(1), ranks, values, indices
