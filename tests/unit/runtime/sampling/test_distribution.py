"""Draws follow the distribution of Hugging Face's logits processors, by chi-square tests."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tests.unit.runtime.sampling.rows import draws, greedy, random_logits, row, tokens
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo_runtime.layers.sampling.draw import uniforms

NUM_DRAWS = 10_000
VOCAB = 40
PROMPT, OUTPUT = (1, 2, 3, 3), (4, 5, 5, 5, 2)


def reference(values: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """Probabilities of every token, in fp64, by Hugging Face where it has the knob."""
    logits = values.double().clone()
    for token_id, bias in params.get("logit_bias", {}).items():
        logits[token_id] += bias
    allowed = params.get("allowed_token_ids")
    if allowed is not None:
        logits[[t for t in range(len(logits)) if t not in allowed]] = -torch.inf
    history = torch.tensor([[*PROMPT, *OUTPUT]])
    scores = logits[None]
    if "repetition_penalty" in params:
        penalty = RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])
        scores = penalty(history, scores)
    for token_id in set(OUTPUT):
        scores[0, token_id] -= params.get("frequency_penalty", 0.0) * OUTPUT.count(token_id)
        scores[0, token_id] -= params.get("presence_penalty", 0.0)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.get("temperature", 1.0))])
    if "min_p" in params:
        warpers.append(MinPLogitsWarper(params["min_p"]))
    if "top_k" in params:
        warpers.append(TopKLogitsWarper(params["top_k"]))
    if "top_p" in params:
        warpers.append(TopPLogitsWarper(params["top_p"]))
    probabilities: torch.Tensor = warpers(history, scores)[0].softmax(dim=-1)
    return probabilities


def p_value(drawn: list[int], probabilities: torch.Tensor) -> float:
    """Of the chi-square test; tokens of probability 0 must not occur at all.

    Tokens that are expected fewer than 5 times are counted together.
    """
    counts = torch.bincount(torch.tensor(drawn), minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * len(drawn)
    often = expected >= 5
    rare = ~often & (probabilities > 0)
    observed = [*counts[often].tolist(), *([float(counts[rare].sum())] if rare.any() else [])]
    wanted = [*expected[often].tolist(), *([float(expected[rare].sum())] if rare.any() else [])]
    if len(observed) == 1:
        return 1.0
    return float(stats.chisquare(observed, wanted, sum_check=False).pvalue)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_k": 39},
        {"top_p": 0.7},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.8},
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -0.5},
        {"presence_penalty": 1.2},
        {"logit_bias": {3: 2.5, 7: -100.0}},
        {"allowed_token_ids": [1, 5, 9, 11]},
        {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.5},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4},
        {"repetition_penalty": 1.3, "temperature": 0.7, "top_p": 0.8, "logit_bias": {5: 3.0}},
        {"allowed_token_ids": [1, 4, 5, 9, 11], "presence_penalty": 1.0, "top_k": 3},
    ],
    ids=str,
)
def test_draws_follow_the_reference_distribution(params: dict[str, Any]) -> None:
    values = random_logits(1, VOCAB, seed=3)[0]

    drawn = draws(values, NUM_DRAWS, prompt=PROMPT, output=OUTPUT, **params)

    assert p_value(drawn, reference(values, params)) > 0.001


@pytest.mark.parametrize("params", [{}, {"top_p": 0.98}, {"top_p": 0.2}, {"top_k": 300}], ids=str)
def test_draws_from_a_large_vocabulary_follow_it_too(params: dict[str, Any]) -> None:
    """Flat enough that nucleus sampling needs more than its first guess of tokens, and with
    several blocks of tokens, of which the last is not full."""
    values = random_logits(1, 2500, seed=4, scale=1.0)[0]

    drawn = draws(values, NUM_DRAWS, **params)

    assert p_value(drawn, reference(values, params)) > 0.001


@pytest.mark.parametrize("params", [{}, {"top_k": 50}, {"top_p": 0.9}], ids=str)
def test_successive_draws_of_one_sequence_are_independent(params: dict[str, Any]) -> None:
    """The draws of successive positions with one seed follow the distribution as well."""
    values = random_logits(1, VOCAB, seed=5)[0]
    sequence = row(seed=7, **params)
    drawn = []
    for _ in range(3000):
        [token_id] = tokens(values[None], [sequence])
        sequence.append(token_id)
        drawn.append(token_id)

    assert p_value(drawn, reference(values, params)) > 0.001


def test_noise_is_uniform_and_depends_on_seed_position_and_token() -> None:
    rows = [
        row(seed=seed, output=(1,) * position)
        for seed in (-1, 0, 1, 2, 2**62)
        for position in range(20)
    ]
    token_ids = np.tile(np.arange(200), (len(rows), 1))

    numbers = uniforms(rows, token_ids)

    assert 0 < numbers.min() < numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.001
    assert len(np.unique(numbers)) == numbers.size
    correlations = np.asarray(np.corrcoef(numbers))
    assert np.abs(correlations - np.eye(len(rows))).max() < 0.35


@pytest.mark.parametrize("scale", [1e-5, 1e-3])
@pytest.mark.parametrize("params", [{}, {"top_p": 0.98}, {"top_k": 50}], ids=str)
def test_rounding_changes_as_few_draws_as_it_moves_probability(
    params: dict[str, Any], scale: float
) -> None:
    """Noise of this size moves that share of the probability, and little more of the draws."""
    values = random_logits(1, 5000, seed=12, scale=2.0)[0]
    moved = values + random_logits(1, 5000, seed=13, scale=scale)[0]
    before, after = draws(values, 4000, **params), draws(moved, 4000, **params)

    changed = sum(a != b for a, b in zip(before, after, strict=True)) / len(before)
    assert changed <= 4 * scale


def test_the_reference_s_random_history_changes_the_distribution() -> None:
    """Guards the tests above: a penalty that did nothing would fail them."""
    values = random_logits(1, VOCAB, seed=3)[0]
    plain = draws(values, NUM_DRAWS, prompt=PROMPT, output=OUTPUT)

    assert p_value(plain, reference(values, {"presence_penalty": 1.2})) < 1e-6


def test_greedy_takes_the_best_and_ignores_the_seed() -> None:
    values = random_logits(5, VOCAB, seed=1)

    assert tokens(values, [greedy(seed=i) for i in range(5)]) == values.argmax(-1).tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    assert tokens(torch.tensor([[0.0, 3.0, 3.0, 1.0]]), [greedy()]) == [1]


@pytest.mark.parametrize("params", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filter_leaves_the_best_token(params: dict[str, Any]) -> None:
    values = random_logits(1, VOCAB, seed=2)[0]

    assert set(draws(values, 50, **params)) == {int(values.argmax())}


MIX: list[dict[str, Any]] = [
    {"seed": 5, "output": (1, 2)},
    {"temperature": 0.0},
    {"seed": 9, "top_k": 3},
    {"seed": 11, "top_k": 700, "top_p": 0.9},
    {"seed": 12, "top_p": 0.95},
    {"seed": 13, "top_p": 0.5, "repetition_penalty": 1.3, "prompt": (1, 2)},
    {"seed": 14, "min_p": 0.05, "logprobs": 3},
    {"seed": 15, "logit_bias": {4: 5.0}, "logprobs": 0},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_s_token_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    """In bfloat16 many logits are equal, and ties must fall alike as well."""
    values = random_logits(len(MIX) * 40, 3000, seed=6).to(dtype)
    rows = [row(**options) for options in MIX * 40]

    together = tokens(values, rows)
    alone = [tokens(values[i : i + 1], [each])[0] for i, each in enumerate(rows)]
    reversed_ = tokens(values.flip(0), rows[::-1])[::-1]

    assert together == alone == reversed_


def test_more_rows_than_one_piece_come_back_in_order() -> None:
    values = random_logits(700, 4096, seed=8)

    assert tokens(values, [greedy() for _ in range(700)]) == values.argmax(-1).tolist()


@pytest.mark.parametrize("params", [{"top_k": 20}, {"top_p": 0.9}, {"top_p": 0.6}, {}], ids=str)
def test_a_last_bit_that_differs_changes_no_draw(params: dict[str, Any]) -> None:
    """Logits of another batch differ by rounding, which may change the order of equals."""
    values = random_logits(1, VOCAB, seed=9).bfloat16().float()
    noise = random_logits(1, VOCAB, seed=10, scale=1e-6)

    assert draws(values[0], 2000, **params) == draws((values + noise)[0], 2000, **params)
