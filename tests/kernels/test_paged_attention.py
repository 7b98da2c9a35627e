"""Attention against its reference, and the reference against torch's own on dense tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo_kernels import AttentionMetadata, KernelError, paged_attention, use_cpu_backend
from octavo_kernels.reference.paged_attention import paged_attention as reference

MakeBatch = Callable[..., Any]

# fp32: both sides add up to ~1,000 products of size ~1 in their own order; errors stay near 1e-6.
FP32 = (5e-6, 1e-5)
# bf16: inputs are equal and sums are fp32 on the compiled path, so one rounding of the result
# (2^-8) remains; torch's own attention also rounds the weights to bf16, which moves results of
# size ~1 by about as much again.
BF16 = (1.6e-2, 1.6e-2)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    atol, rtol = FP32 if expected.dtype == torch.float32 else BF16
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def check(batch: Any, scale: float | None = None) -> None:
    scale = scale or 1 / math.sqrt(batch.query.shape[2])
    arguments = (batch.query, batch.key_cache, batch.value_cache, batch.metadata)
    expected = reference(*arguments, scale=scale)
    actual = paged_attention(*arguments, scale=scale)
    assert not expected.isnan().any()
    assert_close(actual, expected)


BATCHES = {
    "one_decode": ([1], [37]),
    "context_of_one": ([1], [1]),
    "decodes": ([1, 1, 1, 1, 1], [1, 16, 17, 250, 100]),
    "decodes_past_one_group": ([1] * 19, list(range(3, 193, 10))),
    "prefill": ([33, 5], [33, 5]),
    "prefill_of_one_token": ([1, 1], [1, 1]),
    "exactly_one_block": ([16], [16]),
    "one_block_and_one_token": ([17], [17]),
    "chunk_after_a_prefix": ([7, 64], [39, 65]),
    "mixed": ([1, 1, 12, 40, 1], [90, 3, 12, 61, 20]),
    "longer_than_a_score_chunk": ([1, 20], [1100, 1030]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", BATCHES)
def test_ragged_batch_matches_reference(
    make_batch: MakeBatch, backend: str, name: str, dtype: torch.dtype
) -> None:
    check(make_batch(*BATCHES[name], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("head_dim", "heads", "block_size"),
    [
        (64, (9, 3), 16),
        (64, (1, 1), 8),
        (64, (14, 2), 32),
        (80, (4, 4), 16),
        (96, (8, 1), 16),
        (128, (8, 2), 16),
        (256, (4, 1), 16),
    ],
)
def test_head_shapes_match_reference(
    make_batch: MakeBatch,
    head_dim: int,
    heads: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
) -> None:
    check(
        make_batch(
            [1, 1, 19],
            [block_size + 1, 2 * block_size, 50],
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
        )
    )


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 70)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_any_ragged_batch_matches_reference(
    make_batch: MakeBatch, backend: str, sequences: list[tuple[int, int]], seed: int
) -> None:
    query_lens = [new for new, _ in sequences]
    check(make_batch(query_lens, [new + old for new, old in sequences], seed=seed))


def test_reference_matches_dense_attention(make_batch: MakeBatch) -> None:
    batch = make_batch([1, 9, 20], [30, 9, 33], num_heads=6, num_kv_heads=2)
    actual = reference(batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=0.125)
    start = 0
    for query_len, keys, values in zip([1, 9, 20], batch.keys, batch.values, strict=True):
        q = batch.query[start : start + query_len].transpose(0, 1)
        k, v = (each.transpose(0, 1).repeat_interleave(3, dim=0) for each in (keys, values))
        context = k.shape[1]
        mask = torch.ones(query_len, context, dtype=torch.bool).tril(context - query_len)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.125)
        assert_close(actual[start : start + query_len], expected.transpose(0, 1))
        start += query_len


def test_large_scores_do_not_overflow(make_batch: MakeBatch, backend: str) -> None:
    batch = make_batch([1, 30], [700, 30])
    batch.query.mul_(100)
    scale = 1.0  # scores of several hundred: exp overflows unless the maximum is taken off
    arguments = (batch.query, batch.key_cache, batch.value_cache, batch.metadata)
    actual = paged_attention(*arguments, scale=scale)
    # Scores of ~1,000 carry an absolute rounding error of ~1e-4, their weights a relative one.
    torch.testing.assert_close(actual, reference(*arguments, scale=scale), atol=2e-3, rtol=2e-3)


def test_query_may_be_a_slice_and_out_is_used(make_batch: MakeBatch, backend: str) -> None:
    batch = make_batch([1, 8], [20, 8])
    fused = torch.full((9, 8, 64), float("nan"))
    fused[:, :4] = batch.query
    out = torch.empty(9, 4, 64)
    rest = (batch.key_cache, batch.value_cache, batch.metadata)
    returned = paged_attention(fused[:, :4], *rest, scale=0.125, out=out)
    assert returned is out
    assert_close(out, reference(batch.query, *rest, scale=0.125))


def test_neighbours_do_not_change_a_sequence(make_batch: MakeBatch) -> None:
    """A decode gets the same bits alone and in a batch: its sums do not depend on others."""
    pytest.importorskip("numba")
    batch = make_batch([1, 1, 25], [70, 33, 40])
    together = paged_attention(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=0.125
    )
    whole = batch.metadata
    alone = AttentionMetadata.from_numpy(
        np.array([0, 1]),
        whole.context_lens_host[1:2],
        whole.block_tables_host[1:2],
        whole.slot_mapping[1:2].numpy(),
        num_decodes=1,
    )
    with use_cpu_backend("numba"):
        result = paged_attention(
            batch.query[1:2], batch.key_cache, batch.value_cache, alone, scale=0.125
        )
    assert torch.equal(result, together[1:2])


def test_odd_block_size_falls_back_to_torch(make_batch: MakeBatch) -> None:
    check(make_batch([1, 11], [29, 11], block_size=10))


def test_empty_step_returns_nothing(backend: str) -> None:
    metadata = AttentionMetadata.from_numpy(
        np.array([0]), np.empty(0, int), np.empty((0, 1), int), np.empty(0, int), num_decodes=0
    )
    cache = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    assert paged_attention(torch.empty(0, 1, 16), *cache, metadata, scale=1.0).shape == (0, 1, 16)


class TestMetadata:
    def test_positions_and_lengths(self, make_batch: MakeBatch) -> None:
        metadata = make_batch([1, 3, 2], [5, 3, 9]).metadata
        assert metadata.positions.tolist() == [4, 0, 1, 2, 7, 8]
        assert metadata.query_lens_host.tolist() == [1, 3, 2]
        assert (metadata.num_sequences, metadata.num_tokens, metadata.num_decodes) == (3, 6, 1)

    @given(
        sequences=st.lists(
            st.tuples(st.integers(1, 70), st.integers(0, 50)), min_size=1, max_size=8
        )
    )
    @settings(max_examples=50, deadline=None)
    def test_work_items_cover_every_token_once(self, sequences: list[tuple[int, int]]) -> None:
        lens = np.array([new for new, _ in sequences])
        contexts = lens + np.array([old for _, old in sequences])
        starts = np.concatenate([[0], np.cumsum(lens)])
        metadata = AttentionMetadata.from_numpy(
            starts,
            contexts,
            np.zeros((len(lens), 8), int),
            np.zeros(starts[-1], int),
            num_decodes=0,
        )
        covered: list[Tensor] = []
        for sequence, first, count in metadata.work_items.tolist():
            assert 1 <= count <= 16
            covered.append(starts[sequence] + first + np.arange(count))
        assert sorted(np.concatenate(covered)) == list(range(starts[-1]))

    @pytest.mark.parametrize(
        ("starts", "contexts", "slots", "num_decodes"),
        [
            ([0, 1], [4, 4], 1, 0),
            ([0, 2], [4], 1, 0),
            ([0, 2], [1], 2, 0),
            ([0, 2], [4], 2, 1),
            ([0, 0], [4], 0, 0),
        ],
    )
    def test_arrays_that_disagree_are_refused(
        self, starts: list[int], contexts: list[int], slots: int, num_decodes: int
    ) -> None:
        with pytest.raises(KernelError):
            AttentionMetadata.from_numpy(
                np.array(starts),
                np.array(contexts),
                np.zeros((1, 4), int),
                np.zeros(slots, int),
                num_decodes=num_decodes,
            )
