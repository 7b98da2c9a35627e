"""The shortcuts past sorting the vocabulary find what sorting finds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.runtime.sampling.rows import random_logits, row, sample

from octavo_runtime.layers.sampling.filters import keep_nucleus
from octavo_runtime.layers.sampling.sampler import Sampler
from octavo_runtime.layers.sampling.top_tokens import top_tokens


@given(
    seed=st.integers(0, 1000),
    vocab_size=st.sampled_from([1, 5, 127, 128, 129, 640, 2000, 4096]),
    count=st.sampled_from([1, 2, 5, 64]),
    coarse=st.booleans(),
)
def test_top_tokens_are_those_of_a_full_sort(
    seed: int, vocab_size: int, count: int, coarse: bool
) -> None:
    """`coarse`: many equal values, of which any may be taken."""
    logits = random_logits(3, vocab_size, seed=seed)
    if coarse:
        logits = logits.round()
    count = min(count, vocab_size)

    values, indices = top_tokens(logits, count)

    assert torch.equal(values, logits.sort(dim=-1, descending=True).values[:, :count])
    assert torch.equal(logits.gather(1, indices), values)
    assert all(len(set(row)) == count for row in indices.tolist())


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0]),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999999]),
    vocab_size=st.sampled_from([1, 40, 3000]),
)
def test_the_nucleus_is_that_of_a_full_sort(
    seed: int, scale: float, top_p: float, vocab_size: int
) -> None:
    logits = random_logits(2, vocab_size, seed=seed, scale=scale)
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    kept = weights.clone()

    keep_nucleus(kept, torch.full((2,), top_p, dtype=torch.float64))

    for before, after in zip(weights.double(), kept.double(), strict=True):
        ordered = before.sort(descending=True).values
        size = int((after > 0).sum())
        assert torch.equal(after.sort(descending=True).values[:size], ordered[:size])
        mass = ordered.cumsum(0)
        # The fewest that reach it, but for the rounding of a sum.
        assert float(mass[size - 1]) >= top_p * float(mass[-1]) * (1 - 1e-9)
        assert size == 1 or float(mass[size - 2]) < top_p * float(mass[-1]) * (1 + 1e-9)


@pytest.mark.parametrize("top_p", [0.3, 0.98])
def test_processed_logits_keep_the_whole_nucleus(top_p: float) -> None:
    """A flat distribution, whose nucleus has more tokens than the first guess."""
    values = random_logits(2, 3000, seed=3, scale=0.5)
    rows = [row(seed=1, top_p=top_p, logprobs=-1), row(temperature=0.0)]

    [sampled, _] = sample(values, rows, Sampler("processed_logits"))

    ordered = values[0].sort(descending=True).values
    before = ordered.double().softmax(0).cumsum(0) - ordered.double().softmax(0)
    size = int((before < top_p).sum())
    assert size > 256
    assert sampled.scores is not None
    finite = [value for value in sampled.scores.values[1:] if value > -torch.inf]
    assert finite == ordered[: len(finite)].tolist()
    assert abs(len(finite) - size) <= 1
