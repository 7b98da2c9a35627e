"""Log-probabilities: which tokens, which values in which mode, which ranks."""

from typing import Any

import pytest
import torch
from tests.unit.runtime.sampling.rows import greedy, random_logits, row, sample

from octavo_runtime.config import LogprobsMode
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import Sampler

VOCAB = 50


def scores(
    values: torch.Tensor, sequence: SamplingRow, mode: LogprobsMode = "raw_logprobs"
) -> TokenScores:
    [sampled] = sample(values, [sequence], Sampler(mode))
    assert sampled.scores is not None
    assert sampled.scores.token_ids[0] == sampled.token_id
    return sampled.scores


def test_no_logprobs_where_none_were_asked_for() -> None:
    first, second = sample(random_logits(2, VOCAB), [greedy(), greedy(logprobs=1)])

    assert first.scores is None
    assert second.scores is not None


def test_the_sampled_token_comes_first_then_the_best_of_the_raw_logits() -> None:
    values = random_logits(1, VOCAB, seed=6)
    best = int(values.argmax())

    found = scores(values, greedy(logprobs=3, bad=[[best]]))

    raw = values[0].log_softmax(-1)
    top = raw.topk(3).indices.tolist()
    assert found.token_ids == [top[1], *top]
    assert found.rank == 2
    assert found.values == pytest.approx([float(raw[t]) for t in found.token_ids], abs=1e-6)


def test_logprobs_0_gives_the_sampled_token_alone() -> None:
    found = scores(random_logits(1, VOCAB, seed=7), greedy(logprobs=0))

    assert (len(found.token_ids), found.rank) == (1, 1)


def test_logprobs_minus_1_gives_the_whole_vocabulary_from_best_to_worst() -> None:
    values = random_logits(1, VOCAB, seed=8)

    found = scores(values, row(seed=3, logprobs=-1))

    raw = values[0].log_softmax(-1)
    order = raw.argsort(descending=True).tolist()
    assert found.token_ids[1:] == order
    assert found.values[1:] == pytest.approx(raw[order].tolist(), abs=1e-6)
    assert found.rank == order.index(found.token_ids[0]) + 1
    assert found.ranks is None


def test_more_logprobs_than_tokens_gives_them_all() -> None:
    assert len(scores(random_logits(1, VOCAB), greedy(logprobs=VOCAB + 9)).token_ids) == VOCAB + 1


def test_named_tokens_come_in_their_order_with_their_ranks() -> None:
    values = random_logits(1, VOCAB, seed=9)
    named = [4, 40, 7, 4]

    found = scores(values, greedy(logprob_token_ids=named))

    raw = values[0].log_softmax(-1)
    order = raw.argsort(descending=True).tolist()
    assert found.token_ids == [order[0], *named]
    assert found.values == pytest.approx([float(raw[t]) for t in found.token_ids], abs=1e-6)
    assert found.ranks == [order.index(t) + 1 for t in found.token_ids]


def test_no_named_tokens_gives_the_sampled_one() -> None:
    assert len(scores(random_logits(1, VOCAB), greedy(logprob_token_ids=[])).token_ids) == 1


KNOBS: dict[str, Any] = {
    "temperature": 0.5,
    "top_k": 4,
    "logit_bias": {3: 4.0},
    "frequency_penalty": 0.5,
    "output": (1, 1),
}


def processed(values: torch.Tensor) -> torch.Tensor:
    logits = values[0].clone()
    logits[3] += 4.0
    logits[1] -= 1.0
    logits /= 0.5
    kept = logits.topk(4)
    return torch.full_like(logits, -torch.inf).scatter_(0, kept.indices, kept.values)


@pytest.mark.parametrize("width", [1, 3])
def test_each_mode_gives_its_own_values(width: int) -> None:
    """Also where the row stands between a greedy one and one with other filters."""
    values = random_logits(width, VOCAB, seed=10)
    if width == 3:
        values = values.roll(1, 0)
    place = width // 2
    rows = [greedy(logprobs=1), row(logprobs=-1, **KNOBS), row(top_p=0.5, logprobs=2)]
    rows = rows if width == 3 else rows[1:2]
    raw, final = values[place], processed(values[place : place + 1])
    wanted = {
        "raw_logits": raw,
        "raw_logprobs": raw.log_softmax(-1),
        "processed_logits": final,
        "processed_logprobs": final.log_softmax(-1),
    }
    modes: list[LogprobsMode] = [
        "raw_logits",
        "raw_logprobs",
        "processed_logits",
        "processed_logprobs",
    ]
    for mode in modes:
        found = sample(values, rows, Sampler(mode))[place].scores
        assert found is not None
        expected = [float(wanted[mode][t]) for t in found.token_ids]
        assert found.values == pytest.approx(expected, abs=1e-5), mode


def test_processed_values_of_a_greedy_row_have_no_temperature() -> None:
    values = random_logits(2, VOCAB, seed=11)
    rows = [greedy(logprobs=2, logit_bias={5: 9.0}), row(temperature=0.5, seed=1)]

    found = sample(values, rows, Sampler("processed_logits"))[0].scores

    assert found is not None
    assert found.values[0] == pytest.approx(float(values[0, 5]) + 9.0, abs=1e-5)


def test_processed_logprobs_without_top_k_sum_to_one_over_what_min_p_leaves() -> None:
    values = random_logits(1, VOCAB, seed=12)

    found = scores(values, row(min_p=0.2, logprobs=-1), "processed_logprobs")

    probabilities = torch.tensor(found.values[1:]).exp()
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    assert int((probabilities > 0).sum()) < VOCAB


def test_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    values = random_logits(1, VOCAB, seed=13).bfloat16()

    found = scores(values, greedy(logprobs=2))

    raw = values[0].float().log_softmax(-1)
    assert found.values == pytest.approx([float(raw[t]) for t in found.token_ids], abs=1e-6)


def test_rows_get_as_many_logprobs_as_each_asked_for() -> None:
    rows = [greedy(logprobs=k) for k in (0, 5, 2, 5)]

    found = [each.scores for each in sample(random_logits(4, VOCAB), rows)]

    assert [len(each.token_ids) for each in found if each is not None] == [1, 6, 3, 6]
