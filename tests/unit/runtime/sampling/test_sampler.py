"""The sampler: every knob against an independent computation, draws against the distribution."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.draw import uniform
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler

VOCAB = 12


def row(
    *,
    output: tuple[int, ...] = (),
    prompt: tuple[int, ...] = (),
    banned: tuple[int, ...] = (),
    **params: Any,
) -> SamplingRow:
    seed = params.pop("seed", 0)
    made = SamplingRow(
        SamplingParams(**params),
        seed=seed,
        prompt_token_ids=prompt,
        bad_words=[[t] for t in banned],
    )
    for token_id in output:
        made.append(token_id)
    return made


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[SampledRow]:
    return Sampler().sample(logits.clone(), rows)


def logits(seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def draws(values: torch.Tensor, count: int, **params: Any) -> list[int]:
    rows = [row(seed=i, **params) for i in range(count)]
    return [s.token_id for s in sample(values.expand(count, -1), rows)]


def chi_square(tokens: list[int], expected: torch.Tensor) -> float:
    """Statistic over the tokens of non-zero probability; the others must not occur."""
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0
    want = expected.double() * len(tokens)
    possible = expected > 0
    return float((((counts - want) ** 2) / want)[possible].sum())


# 0.999 quantiles of the chi-square distribution by degrees of freedom.
QUANTILE = {2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3, 8: 26.1, 11: 31.3}


def reference_probabilities(
    values: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> torch.Tensor:
    """Written for one row, with loops, apart from the code under test."""
    p = (values / temperature).softmax(-1)
    keep = [t for t in range(VOCAB) if p[t] >= min_p * p.max()]
    order = sorted(keep, key=lambda t: -float(p[t]))
    if top_k > 0:
        order = order[:top_k]
    total = sum(float(p[t]) for t in order)
    kept: list[int] = []
    mass = 0.0
    for t in order:
        if kept and mass >= top_p:
            break
        kept.append(t)
        mass += float(p[t]) / total
    result = torch.zeros(VOCAB)
    for t in kept:
        result[t] = p[t]
    return result / result.sum()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    values = logits(3)[0]
    expected = reference_probabilities(values, **params)
    tokens = draws(values, 20_000, **params)
    freedom = int((expected > 0).sum()) - 1
    assert chi_square(tokens, expected) < QUANTILE[freedom]


def test_greedy_takes_the_best_and_ignores_the_seed() -> None:
    values = logits(1, 5)
    rows = [row(temperature=0.0, seed=i) for i in range(5)]
    assert [s.token_id for s in sample(values, rows)] == values.argmax(-1).tolist()


def test_top_k_1_equals_greedy() -> None:
    values = logits(2)[0]
    assert set(draws(values, 50, top_k=1)) == {int(values.argmax())}


def test_tiny_top_p_keeps_the_best_token() -> None:
    values = logits(2)[0]
    assert set(draws(values, 50, top_p=1e-6)) == {int(values.argmax())}


def test_a_draw_depends_on_seed_and_position_only() -> None:
    values = logits(4, 3)
    mixed = [row(seed=5, output=(1, 2)), row(temperature=0.0), row(seed=9, top_k=3)]
    alone = sample(values[:1], mixed[:1])[0].token_id
    assert sample(values, mixed)[0].token_id == alone
    assert sample(values.flip(0), mixed[::-1])[2].token_id == alone


def test_uniform_is_uniform_and_never_0_or_1() -> None:
    numbers = torch.tensor(
        [uniform(seed, position) for seed in range(100) for position in range(100)]
    )
    assert numbers.min() > 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=12, min=0, max=1)
    expected = len(numbers) / 12
    assert float(((counts - expected) ** 2 / expected).sum()) < QUANTILE[11]
    assert len({uniform(s, p) for s in (-1, 0, 1, 2**62) for p in range(50)}) == 200


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    values = torch.zeros(1, VOCAB)
    values[0, :4] = torch.tensor([3.0, 2.9, -1.0, -1.1])
    seen = row(temperature=0.0, repetition_penalty=1.5, prompt=(0,))
    assert sample(values, [seen])[0].token_id == 1  # 3.0/1.5 < 2.9
    values[0, 4:] = -9.0
    values[0, :2] = -9.0
    seen = row(temperature=0.0, repetition_penalty=1.5, output=(2,))
    assert sample(values, [seen])[0].token_id == 3  # -1.0*1.5 < -1.1


def test_frequency_counts_and_presence_does_not_and_both_ignore_the_prompt() -> None:
    values = torch.zeros(1, VOCAB)
    values[0, :2] = torch.tensor([2.0, 1.0])
    history: tuple[int, ...] = (0, 0, 0)
    assert (
        sample(values, [row(temperature=0.0, frequency_penalty=0.4, output=history)])[0].token_id
        == 1
    )
    assert (
        sample(values, [row(temperature=0.0, presence_penalty=0.4, output=history)])[0].token_id
        == 0
    )
    assert (
        sample(values, [row(temperature=0.0, frequency_penalty=2.0, prompt=history)])[0].token_id
        == 0
    )


def test_banned_tokens_are_never_drawn() -> None:
    values = logits(5)[0]
    best = int(values.argmax())
    assert best not in draws(values, 500, banned=(best,))
    assert sample(values[None], [row(temperature=0.0, banned=(best,))])[0].token_id != best


def test_logprobs_are_of_the_raw_logits() -> None:
    values = logits(6, 2)
    best = int(values[0].argmax())
    rows = [row(temperature=0.0, logprobs=3, banned=(best,)), row(temperature=0.0)]
    first, second = sample(values.clone(), rows)
    raw = values[0].log_softmax(-1)
    assert second.scores is None
    assert first.scores is not None
    assert first.scores.rank == 2
    assert first.scores.token_ids == [first.token_id, *raw.topk(3).indices.tolist()]
    for token_id, logprob in zip(first.scores.token_ids, first.scores.values, strict=True):
        assert math.isclose(logprob, float(raw[token_id]), abs_tol=1e-6)


def test_logprobs_0_gives_the_sampled_token_alone() -> None:
    (only,) = sample(logits(7), [row(temperature=0.0, logprobs=0)])
    assert only.scores is not None
    assert only.scores.token_ids == [only.token_id]
    assert only.scores.rank == 1
