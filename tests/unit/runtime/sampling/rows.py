"""Rows and draws for the sampler's tests."""

from collections.abc import Sequence
from typing import Any

import torch

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler
from octavo_runtime.layers.sampling.thinking import ThinkingBudget


def row(
    *,
    prompt: Sequence[int] = (),
    output: Sequence[int] = (),
    seed: int = 0,
    ends: Sequence[int] = (),
    bad: Sequence[Sequence[int]] = (),
    thinking: ThinkingBudget | None = None,
    **params: Any,
) -> SamplingRow:
    """A sequence that has generated `output`."""
    made = SamplingRow(
        SamplingParams(**params),
        seed=seed,
        prompt_token_ids=prompt,
        end_token_ids=ends,
        bad_words=bad,
        thinking=thinking,
    )
    for token_id in output:
        made.append(token_id)
    return made


def greedy(**options: Any) -> SamplingRow:
    return row(temperature=0.0, **options)


def sample(
    logits: torch.Tensor, rows: Sequence[SamplingRow], sampler: Sampler | None = None
) -> list[SampledRow]:
    """As the engine calls it; `logits` stay as they were."""
    return (sampler or Sampler()).sample(logits.clone(), rows)


def tokens(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    return [each.token_id for each in sample(logits, rows)]


def draws(values: torch.Tensor, count: int, **options: Any) -> list[int]:
    """`count` draws from one row of logits, each with its own seed."""
    rows = [row(seed=seed, **options) for seed in range(count)]
    return tokens(values.expand(count, -1), rows)


def random_logits(rows: int, vocab_size: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale
