"""Bans, biases, penalties and the thinking budget, and the order in which they act."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.runtime.sampling.rows import draws, greedy, random_logits, row, sample, tokens

from octavo_runtime.config import LogprobsMode
from octavo_runtime.layers.sampling.rows import TokenHistory
from octavo_runtime.layers.sampling.sampler import Sampler
from octavo_runtime.layers.sampling.thinking import ThinkingBudget

VOCAB = 12


def ranked(*best: int) -> torch.Tensor:
    """Logits whose greatest values are at `best`, in that order; all positive."""
    values = torch.full((1, VOCAB), 0.1)
    for place, token_id in enumerate(best):
        values[0, token_id] = 5.0 - 0.5 * place
    return values


def test_min_tokens_forbids_end_tokens_until_enough_are_there() -> None:
    values = ranked(3, 4, 5)
    ends = (3, 4)

    assert tokens(values, [greedy(ends=ends, min_tokens=2, output=(1,))]) == [5]
    assert tokens(values, [greedy(ends=ends, min_tokens=2, output=(1, 1))]) == [3]
    assert 3 not in draws(values[0], 300, ends=ends, min_tokens=1)


def test_a_bad_word_of_one_token_is_never_chosen() -> None:
    assert tokens(ranked(3, 4), [greedy(bad=[[3]])]) == [4]
    assert 3 not in draws(ranked(3, 4)[0], 300, bad=[[3]])


def test_the_last_token_of_a_bad_word_is_banned_only_after_the_others() -> None:
    values = ranked(3, 4)
    bad = [[1, 2, 3]]

    assert tokens(values, [greedy(bad=bad, output=(7, 1, 2))]) == [4]
    assert tokens(values, [greedy(bad=bad, output=(1, 2))]) == [4]
    assert tokens(values, [greedy(bad=bad, output=(2, 1))]) == [3]
    assert tokens(values, [greedy(bad=bad, output=(2,))]) == [3]
    assert tokens(values, [greedy(bad=bad, output=(1, 2, 7))]) == [3]


def test_a_bad_word_is_matched_on_the_output_only() -> None:
    assert tokens(ranked(3, 4), [greedy(bad=[[1, 2, 3]], prompt=(1, 2))]) == [3]
    assert tokens(ranked(3, 4), [greedy(bad=[[1, 2, 3]], prompt=(1,), output=(2,))]) == [3]


def test_a_bias_is_added_to_the_logits() -> None:
    values = ranked(3, 4)  # 5.0, 4.5

    assert tokens(values, [greedy(logit_bias={4: 0.6})]) == [4]
    assert tokens(values, [greedy(logit_bias={4: 0.4})]) == [3]
    assert tokens(values, [greedy(logit_bias={3: -100.0, 4: -100.0, 9: 1.0})]) == [9]


def test_only_allowed_tokens_are_chosen_and_bans_hold_among_them() -> None:
    values = ranked(3, 4, 5)

    assert tokens(values, [greedy(allowed_token_ids=[5, 9])]) == [5]
    assert tokens(values, [greedy(allowed_token_ids=[5, 9], bad=[[5]])]) == [9]
    assert set(draws(values[0], 300, allowed_token_ids=[5, 9])) == {5, 9}


def test_where_nothing_is_left_some_token_of_the_vocabulary_comes() -> None:
    knobs: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"top_p": 0.5},
        {"top_k": 2},
        {"min_p": 0.1},
    ]
    rows = [row(allowed_token_ids=[5], bad=[[5]], logprobs=2, **each) for each in knobs]
    modes: list[LogprobsMode] = ["raw_logprobs", "processed_logprobs"]

    for mode in modes:
        for width in (VOCAB, 3000):
            values = random_logits(len(rows), width)
            for each in sample(values, rows, Sampler(mode)):
                assert 0 <= each.token_id < width


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    values = torch.full((1, VOCAB), -9.0)
    values[0, :4] = torch.tensor([3.0, 2.9, -1.0, -1.1])
    assert tokens(values, [greedy(repetition_penalty=1.5, prompt=(0,))]) == [1]
    values[0, :2] = -9.0
    assert tokens(values, [greedy(repetition_penalty=1.5, output=(2,))]) == [3]


def test_frequency_counts_and_presence_does_not_and_both_ignore_the_prompt() -> None:
    values = torch.zeros(1, VOCAB)
    values[0, :2] = torch.tensor([2.0, 1.0])

    assert tokens(values, [greedy(frequency_penalty=0.4, output=(0, 0, 0))]) == [1]
    assert tokens(values, [greedy(presence_penalty=0.4, output=(0, 0, 0))]) == [0]
    assert tokens(values, [greedy(frequency_penalty=2.0, prompt=(0, 0, 0))]) == [0]


def test_biases_come_before_penalties() -> None:
    """(5.0 - 4.2) / 2 = 0.4 beats 0.3, and 5.0 / 2 - 4.2 would not."""
    values = torch.zeros(1, VOCAB)
    values[0, 0], values[0, 1] = 5.0, 0.3

    biased = greedy(logit_bias={0: -4.2}, repetition_penalty=2.0, output=(0,))

    assert tokens(values, [biased]) == [0]


def test_penalties_of_a_batch_are_those_of_each_row_alone() -> None:
    values = random_logits(6, VOCAB, seed=2)
    rows = [
        greedy(repetition_penalty=1.4, prompt=(1, 2), output=(3,)),
        greedy(),
        greedy(frequency_penalty=1.0, presence_penalty=0.5, output=(1, 1, 2)),
        greedy(frequency_penalty=1.0),
        greedy(repetition_penalty=0.7, prompt=(0, 1, 2, 3)),
        greedy(presence_penalty=-2.0, output=(4,), allowed_token_ids=[4, 5, 6]),
    ]

    alone = [tokens(values[i : i + 1], [each])[0] for i, each in enumerate(rows)]

    assert tokens(values, rows) == alone


@given(
    prompt=st.lists(st.integers(0, 300)),
    output=st.lists(st.integers(0, 300), max_size=250),
)
def test_a_history_knows_every_distinct_token_and_its_count(
    prompt: list[int], output: list[int]
) -> None:
    history = TokenHistory(prompt)
    for token_id in output:
        history.add(token_id)

    counts = dict(zip(history.token_ids.tolist(), history.counts.tolist(), strict=True))

    assert counts == {t: float(output.count(t)) for t in {*prompt, *output}}


def test_a_spent_thinking_budget_forces_the_end_tokens_one_after_another() -> None:
    thinking = ThinkingBudget(2, [8, 9])
    sequence = greedy(thinking=thinking)
    said = []
    for _ in range(6):
        [token_id] = tokens(ranked(3, 4), [sequence])
        sequence.append(token_id)
        said.append(token_id)

    assert said == [3, 3, 8, 9, 3, 3]


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    sequence = greedy(thinking=ThinkingBudget(3, [8, 9]), output=(1, 8, 9, 1, 1, 1, 1))

    assert tokens(ranked(3, 4), [sequence]) == [3]


def test_an_end_that_has_begun_is_completed() -> None:
    def forced(*output: int) -> int | None:
        budget = ThinkingBudget(3, [8, 8, 9])
        for token_id in output:
            budget.append(token_id)
        return budget.forced_token_id

    assert forced(1, 8) is None
    assert forced(1, 1, 8) == 8
    assert forced(1, 8, 8) == 9
    assert forced(8, 8, 8) == 9
    assert forced(8, 8, 1) == 8
    assert forced(8, 8, 9) is None


def test_a_budget_of_0_ends_the_reasoning_at_once() -> None:
    assert tokens(ranked(3), [row(thinking=ThinkingBudget(0, [8]), seed=4)]) == [8]


def test_a_forced_token_wins_over_bans() -> None:
    sequence = greedy(thinking=ThinkingBudget(0, [8]), bad=[[8]], allowed_token_ids=[3])

    assert tokens(ranked(3), [sequence]) == [8]
