"""Sampling on the GPU: the reference's choice with the same noise, and the right distribution."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from octavo_kernels.gpu.logprobs import gather_logprobs
from octavo_kernels.gpu.sampling import sample_tokens
from octavo_kernels.gpu.sampling_filters import find_contenders
from octavo_kernels.reference import sampling as reference

_VOCAB = 5000  # more than one program reads at once
# temperature, top_k, top_p, min_p
_MIXED = ([0.6, 1.0, 0.8], [20, 0, 0], [0.95, 1.0, 0.9], [0.0, 0.0, 0.05])


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
        {"top_k": 40},
        {"top_p": 0.95, "temperature": 2.0},
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


_FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 30},
    {"top_k": 100},  # more than there are blocks
    {"top_k": _VOCAB},
    {"top_p": 0.3},
    {"top_p": 0.9, "temperature": 2.0},
    {"top_p": 0.999, "temperature": 0.5},
    {"min_p": 0.1},
    {"min_p": 0.1, "top_k": 20},
    {"min_p": 0.02, "top_p": 0.7},
    {"top_k": 200, "top_p": 0.8},
    {"top_k": 50, "top_p": 0.5, "min_p": 0.01, "temperature": 1.5},
]


@pytest.mark.parametrize("step", [0.0, 0.25, 2.0])
def test_filters_keep_the_tokens_that_a_sort_keeps(device: str, step: float) -> None:
    """Logits in steps have many equals at every edge; 0: none."""
    rows = [_inputs(1, torch.float32, **columns) for columns in _FILTERS]
    logits, temperature, top_k, top_p, min_p, *_ = map(torch.cat, zip(*rows, strict=True))
    logits += torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    if step:
        logits = (logits / step).round() * step
    logits[:, 1000:1300] = -torch.inf
    limits = (temperature, top_k, top_p, min_p)

    found = find_contenders(logits.to(device), *[each.to(device) for each in limits])

    threshold, last = found.threshold.cpu(), found.last.cpu()
    tokens = torch.arange(_VOCAB)
    for row, values in enumerate(logits):
        is_edge = (values == threshold[row]) & (tokens <= last[row])
        actual = (values > threshold[row]) | is_edge
        heat, k, p, least = (each[row].item() for each in limits)
        expected = reference.kept(values, heat, int(k), p, least)
        expected &= values > -torch.inf
        assert actual.nonzero().flatten().tolist() == expected.nonzero().flatten().tolist()
        blocks = found.blocks[row, : int(found.counts[row])].tolist()
        assert blocks == sorted(set(blocks))
        assert {token // 128 for token in actual.nonzero().flatten().tolist()} <= {*blocks}


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


def test_a_mask_that_leaves_fewer_tokens_than_top_k_leaves_them(device: str) -> None:
    inputs = _inputs(16, torch.bfloat16, top_k=50, top_p=0.9)
    allowed = torch.tensor([3, 4, 700, 4999])
    inputs[0][:] = -torch.inf
    inputs[0][:, allowed] = torch.tensor([1.0, 1.0, 1.0, -80.0]).bfloat16()

    drawn = sample_tokens(*[each.to(device) for each in inputs]).tolist()

    assert drawn == reference.sample_tokens(*inputs).tolist()
    assert set(drawn) == {3, 4, 700}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 15])
def test_log_probabilities_are_the_references(device: str, count: int, dtype: torch.dtype) -> None:
    logits = _inputs(3, dtype)[0]
    logits[0, 5:4990] = -torch.inf
    token_ids = torch.tensor([4999, 0, int(logits[2].argmax())])

    actual = gather_logprobs(logits.to(device), token_ids.to(device), count)

    own, ranks, values, top_ids = (each.cpu() for each in actual)
    expected = reference.gather_logprobs(logits, token_ids, count)
    torch.testing.assert_close(own, expected[0], rtol=1e-5, atol=1e-5)
    assert ranks.tolist() == expected[1].tolist()
    torch.testing.assert_close(values, expected[2], rtol=1e-5, atol=1e-5)
    every = logits.float().log_softmax(dim=-1)
    torch.testing.assert_close(every.gather(1, top_ids), values, rtol=1e-5, atol=1e-5)
    assert all(len(set(ids)) == count for ids in top_ids.tolist())


def test_draws_follow_the_distribution(device: str) -> None:
    count, size = 400 if device == "cpu" else 100_000, 6
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -3.0]).repeat(count, 1)
    ones = torch.ones(count)
    inputs = [logits, ones, torch.zeros(count, dtype=torch.int32), ones, ones * 0]
    inputs += [torch.zeros(count, dtype=torch.int64), torch.arange(count)]
    drawn = sample_tokens(*[each.to(device) for each in inputs], has_filters=False)

    observed = torch.bincount(drawn.cpu(), minlength=size).numpy()
    expected = logits[0].double().softmax(-1).numpy() * count
    assert chisquare(observed, expected).pvalue > 0.001


# Too much for the interpreter.
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_rows_far_into_a_large_vocabulary_draw_as_alone(device: str) -> None:
    """Other rows, and over how many programs a row is split, change nothing."""
    num_rows, size = 300, 151_936
    logits = (torch.randn(num_rows, size, device=device) * 3).bfloat16()
    columns = [torch.tensor(each).repeat(num_rows // 3) for each in _MIXED]
    seeds = torch.arange(num_rows) * 7919 - 3
    rest = [each.to(device) for each in (*columns, seeds, torch.arange(num_rows))]

    together = sample_tokens(logits, *rest)

    places = [0, 1, 2, 150, 151, 299]
    alone = [int(sample_tokens(logits[[i]], *[each[[i]] for each in rest])) for i in places]
    assert together[places].tolist() == alone
    expected = reference.sample_tokens(logits[places], *[each[places].cpu() for each in rest])
    assert alone == expected.tolist()
