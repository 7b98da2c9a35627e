"""Sampling on the GPU: the reference's choice with the same noise, and the right distribution."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from octavo_kernels.gpu.sampling import sample_tokens
from octavo_kernels.reference import sampling as reference

_VOCAB = 5000  # more than one tile


def _inputs(num_rows: int, dtype: torch.dtype, **columns: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(num_rows, _VOCAB, generator=generator) * 3).to(dtype)
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | columns
    kinds = {"top_k": torch.int32}
    made = [
        torch.full((num_rows,), value, dtype=kinds.get(name, torch.float32))
        for name, value in given.items()
    ]
    seeds = torch.arange(num_rows, dtype=torch.int64) * 7919 - 3
    return [logits, *made, seeds, torch.arange(num_rows, dtype=torch.int64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "columns",
    [
        {"temperature": 0.0},
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 40},
        {"top_p": 0.3},
        {"top_p": 0.95, "temperature": 2.0},
        {"min_p": 0.1},
        {"top_k": 200, "top_p": 0.8, "min_p": 0.01},
        {"top_k": _VOCAB + 1, "top_p": 0.0},
    ],
    ids=str,
)
def test_the_choice_is_the_references(
    device: str, columns: dict[str, Any], dtype: torch.dtype
) -> None:
    inputs = _inputs(4, dtype, **columns)

    expected = reference.sample_tokens(*inputs)
    actual = sample_tokens(*[each.to(device) for each in inputs])

    assert actual.tolist() == expected.tolist()


def test_rows_of_all_kinds_in_one_batch_do_not_touch_each_other(device: str) -> None:
    kinds: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.5}]
    parts = [_inputs(1, torch.float32, **each) for each in kinds]
    alone = [int(sample_tokens(*[each.to(device) for each in part])) for part in parts]

    together = sample_tokens(*[torch.cat(each).to(device) for each in zip(*parts, strict=True)])

    assert together.tolist() == alone


def test_the_best_token_is_the_first_of_equals(device: str) -> None:
    inputs = _inputs(2, torch.float32, temperature=0.0)
    inputs[0][:] = -1.0
    inputs[0][0, [17, 4500]] = 2.0

    actual = sample_tokens(*[each.to(device) for each in inputs], has_filters=False)

    assert actual.tolist() == [17, 0]


def test_masked_tokens_are_never_drawn(device: str) -> None:
    inputs = _inputs(3, torch.float32, top_p=0.99)
    inputs[0][:, 1:] = -torch.inf

    assert sample_tokens(*[each.to(device) for each in inputs]).tolist() == [0, 0, 0]


def test_draws_follow_the_distribution(device: str) -> None:
    count, size = 600, 6
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0]).repeat(count, 1)
    ones = torch.ones(count)
    inputs = [logits, ones, torch.zeros(count, dtype=torch.int32), ones, ones * 0]
    inputs += [torch.zeros(count, dtype=torch.int64), torch.arange(count)]
    drawn = sample_tokens(*[each.to(device) for each in inputs])

    observed = torch.bincount(drawn.cpu(), minlength=size).numpy()
    expected = logits[0].double().softmax(-1).numpy() * count
    assert chisquare(observed, expected).pvalue > 0.001
