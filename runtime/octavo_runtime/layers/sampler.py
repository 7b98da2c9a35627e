"""Logits to tokens: penalties, temperature, min-p, top-k, top-p, a draw; and log-probabilities.

Order (vLLM's): log-probabilities of the raw logits → min_tokens mask → penalties → greedy choice,
or temperature → min-p → top-k → top-p → draw.

A draw inverts the cumulative distribution at one uniform number per row, which is a hash of
(seed, output position): no state survives between steps, so preemption, batching and another
replica all continue with the same draws. Source of the hash: splitmix64 (Steele et al. 2014).
"""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo_protocol.sampling_params import SamplingParams

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row of logits: how to sample it and what came before.

    seed: of the request, or drawn at its admission. num_output_tokens: tokens sampled so far.
    prompt_token_ids, output_token_ids: read only where a penalty asks for them.
    banned_token_ids: end tokens that `min_tokens` forbids at this position.
    """

    params: SamplingParams
    seed: int
    num_output_tokens: int
    prompt_token_ids: Seq[int]
    output_token_ids: Seq[int]
    banned_token_ids: Seq[int] = ()


@dataclass(frozen=True, slots=True)
class SampledRow:
    """token_ids and logprobs: the sampled token, then the top ones; None if not asked for."""

    token_id: int
    logprob_token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    rank: int = 0


def sample(logits: Tensor, rows: Seq[SamplingRow]) -> list[SampledRow]:
    """One token per row. logits: [len(rows), vocab_size], any float dtype; not kept unchanged."""
    raw = logits.float()
    wants_logprobs = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    raw_logprobs = raw[wants_logprobs].log_softmax(dim=-1) if wants_logprobs else None
    logits = _apply_bans(raw, rows)
    logits = _apply_penalties(logits, rows)
    token_ids: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    if drawn:
        chosen = rows if len(drawn) == len(rows) else [rows[i] for i in drawn]
        subset = logits if len(drawn) == len(rows) else logits[drawn]
        for i, token_id in zip(drawn, _draw(subset, chosen), strict=True):
            token_ids[i] = token_id
    sampled = [SampledRow(token_id) for token_id in token_ids]
    if raw_logprobs is not None:
        for i, logprobs in zip(wants_logprobs, raw_logprobs, strict=True):
            sampled[i] = _with_logprobs(token_ids[i], logprobs, rows[i].params.logprobs or 0)
    return sampled


def uniform(seed: int, position: int) -> float:
    """A number in (0, 1) that is a function of (seed, position) alone."""
    state = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = ((state ^ (state >> shift)) * factor) & _MASK64
    state ^= state >> 31
    return ((state >> 11) + 0.5) / (1 << 53)


def _apply_bans(logits: Tensor, rows: Seq[SamplingRow]) -> Tensor:
    banned = [(i, token_id) for i, row in enumerate(rows) for token_id in row.banned_token_ids]
    if not banned:
        return logits
    row_ids, token_ids = zip(*banned, strict=True)
    logits = logits.clone()
    logits[list(row_ids), list(token_ids)] = -torch.inf
    return logits


def _apply_penalties(logits: Tensor, rows: Seq[SamplingRow]) -> Tensor:
    """Source: CTRL §4.1 (repetition), OpenAI's API reference (frequency, presence)."""
    copied = False
    for i, row in enumerate(rows):
        params = row.params
        if (
            params.repetition_penalty == 1.0
            and params.frequency_penalty == 0.0
            and params.presence_penalty == 0.0
        ):
            continue
        if not copied:
            logits, copied = logits.clone(), True
        values = logits[i]
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*row.prompt_token_ids, *row.output_token_ids}))
            old = values[seen]
            values[seen] = torch.where(
                old > 0, old / params.repetition_penalty, old * params.repetition_penalty
            )
        if row.output_token_ids:
            counter = Counter(row.output_token_ids)
            generated, counts = torch.tensor(list(counter)), torch.tensor(list(counter.values()))
            values[generated] -= params.frequency_penalty * counts + params.presence_penalty
    return logits


def _draw(logits: Tensor, rows: Seq[SamplingRow]) -> list[int]:
    temperature = torch.tensor([row.params.temperature for row in rows]).unsqueeze(1)
    logits = logits / temperature
    if any(row.params.min_p > 0 for row in rows):
        # p >= min_p * p_max, in logarithms
        min_p = torch.tensor([row.params.min_p for row in rows]).unsqueeze(1)
        floor = logits.amax(dim=-1, keepdim=True) + min_p.log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    vocab_size = logits.shape[-1]
    narrow = [
        i for i, row in enumerate(rows) if 0 < row.params.top_k < vocab_size or row.params.top_p < 1
    ]
    if narrow:
        logits[narrow] = _mask_top(logits[narrow], [rows[i].params for i in narrow])
    probabilities = logits.softmax(dim=-1, dtype=torch.float64)
    cumulative = probabilities.cumsum(dim=-1)
    points = torch.tensor(
        [uniform(row.seed, row.num_output_tokens) for row in rows], dtype=torch.float64
    ).unsqueeze(1)
    # `right`: the point lies strictly inside the chosen token's interval, so a token of
    # probability zero (an empty interval) is never chosen.
    token_ids = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
    return token_ids.clamp_(max=vocab_size - 1).squeeze(1).tolist()


def _mask_top(logits: Tensor, params: Seq[SamplingParams]) -> Tensor:
    """Keeps the top_k greatest and, of those, the fewest whose probability reaches top_p."""
    vocab_size = logits.shape[-1]
    limits = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    values, token_ids = logits.topk(max(limits), dim=-1)
    ranks = torch.arange(values.shape[-1])
    values = values.masked_fill(ranks >= torch.tensor(limits).unsqueeze(1), -torch.inf)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the better tokens
    top_p = torch.tensor([p.top_p for p in params]).unsqueeze(1)
    values = values.masked_fill((before >= top_p) & (ranks > 0), -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter_(1, token_ids, values)


def _with_logprobs(token_id: int, logprobs: Tensor, num_logprobs: int) -> SampledRow:
    own = logprobs[token_id]
    rank = int((logprobs > own).sum()) + 1
    top = logprobs.topk(num_logprobs) if num_logprobs else None
    return SampledRow(
        token_id,
        [token_id, *(top.indices.tolist() if top else [])],
        [float(own), *(top.values.tolist() if top else [])],
        rank,
    )
