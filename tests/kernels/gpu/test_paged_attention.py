"""Attention kernels of the GPU against the fp32 reference; every slot they must not read is NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo_kernels import AttentionMetadata
from octavo_kernels.reference.paged_attention import paged_attention as reference

MakeBatch = Callable[..., Any]

# fp32: sums of ~1,000 products of size ~1, in another order.
# bf16 and fp16: the softmax weights are rounded before they meet the values, and the result is
# rounded: two roundings (2^-9, 2^-12) of numbers of size ~1 to ~4.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def on_device(batch: Any, device: str) -> tuple[Tensor, Tensor, Tensor, AttentionMetadata]:
    """The batch as a GPU keeps it: keys with the head dimension innermost."""
    key_cache = batch.key_cache.transpose(2, 3).contiguous().to(device).transpose(2, 3)
    metadata = dataclasses.replace(
        batch.metadata,
        **{
            field.name: value.to(device)
            for field in dataclasses.fields(AttentionMetadata)
            if isinstance(value := getattr(batch.metadata, field.name), Tensor)
        },
    )
    return batch.query.to(device), key_cache, batch.value_cache.to(device), metadata


def with_fp8_cache(batch: Any) -> Any:
    """NaN stays NaN."""
    caches = (batch.key_cache, batch.value_cache)
    key_cache, value_cache = (cache.to(torch.float8_e4m3fn) for cache in caches)
    return dataclasses.replace(batch, key_cache=key_cache, value_cache=value_cache)


def check(batch: Any, device: str, **features: Any) -> None:
    from octavo_kernels.gpu.paged_attention import paged_attention

    scale = 1 / math.sqrt(batch.query.shape[2])
    expected = reference(
        batch.query.float(),
        batch.key_cache.float(),
        batch.value_cache.float(),
        batch.metadata,
        scale=scale,
        **features,
    )
    assert not expected.isnan().any()
    arguments = on_device(batch, device)
    features = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in features.items()}
    out = torch.full_like(arguments[0], float("nan"))
    returned = paged_attention(*arguments, scale=scale, out=out, **features)
    assert returned is out
    tolerance = TOLERANCES[batch.query.dtype]
    torch.testing.assert_close(out.float().cpu(), expected, atol=tolerance, rtol=tolerance)


BATCHES = {
    "one_decode": ([1], [37]),
    "context_of_one": ([1], [1]),
    "decodes": ([1, 1, 1, 1, 1], [1, 16, 17, 250, 100]),
    "prefill": ([33, 5], [33, 5]),
    "one_block_and_one_token": ([17], [17]),
    "chunk_after_a_prefix": ([7, 64], [39, 165]),
    "mixed": ([1, 1, 12, 40, 1], [90, 3, 12, 161, 20]),
    "longer_than_a_part": ([1, 20], [1100, 330]),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BATCHES)
def test_ragged_batch_matches_reference(
    make_batch: MakeBatch, device: str, name: str, dtype: torch.dtype
) -> None:
    check(make_batch(*BATCHES[name], dtype=dtype), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("head_dim", "heads", "block_size"),
    [
        (64, (9, 3), 16),
        (64, (1, 1), 8),
        (64, (14, 2), 32),
        (80, (4, 4), 16),
        (96, (8, 1), 64),
        (128, (8, 2), 16),
        (128, (20, 1), 16),
        (256, (4, 1), 16),
    ],
)
def test_head_shapes_match_reference(
    make_batch: MakeBatch,
    device: str,
    head_dim: int,
    heads: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
) -> None:
    batch = make_batch(
        [1, 1, 19],
        [block_size + 1, 2 * block_size, 50],
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    check(batch, device)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BATCHES)
def test_fp8_cache_matches_reference(
    make_batch: MakeBatch, device: str, name: str, dtype: torch.dtype
) -> None:
    """As close as without fp8: both read the same cache, and fp16 is finer than bf16."""
    check(with_fp8_cache(make_batch(*BATCHES[name], dtype=dtype)), device)


@pytest.mark.parametrize(
    ("head_dim", "heads", "block_size"),
    [(64, (9, 3), 8), (80, (4, 4), 16), (128, (20, 1), 32), (256, (4, 1), 16)],
)
def test_fp8_cache_of_any_shape(
    make_batch: MakeBatch, device: str, head_dim: int, heads: tuple[int, int], block_size: int
) -> None:
    batch = make_batch(
        [1, 1, 19],
        [block_size + 1, 2 * block_size, 50],
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        block_size=block_size,
        dtype=torch.bfloat16,
    )
    check(with_fp8_cache(batch), device, sliding_window=30, soft_cap=4.0)


@pytest.mark.parametrize("size", [2.0**-30, 2.0**30])
def test_fp8_cache_takes_queries_of_any_size(
    make_batch: MakeBatch, device: str, size: float
) -> None:
    """Small and large beyond fp16, in which they meet the keys."""
    from octavo_kernels.gpu.paged_attention import paged_attention

    batch = with_fp8_cache(make_batch([1, 20], [300, 70], dtype=torch.bfloat16))
    query, key_cache, value_cache, metadata = on_device(batch, device)
    rest = (key_cache, value_cache, metadata)
    expected = paged_attention(query, *rest, scale=0.125)
    actual = paged_attention(query * size, *rest, scale=0.125 / size)
    assert torch.equal(actual, expected)


def test_more_sequences_than_are_searched_at_once(make_batch: MakeBatch, device: str) -> None:
    batch = make_batch(
        [2] * 130 + [5], [2] * 130 + [9], num_heads=1, num_kv_heads=1, dtype=torch.bfloat16
    )
    check(batch, device)


@pytest.mark.parametrize("name", ["prefill", "chunk_after_a_prefix", "mixed", "longer_than_a_part"])
@pytest.mark.parametrize("features", [{}, {"sliding_window": 40}], ids=["plain", "window"])
def test_a_launch_for_more_than_there_is_computes_what_there_is(
    make_batch: MakeBatch, device: str, name: str, features: dict[str, Any]
) -> None:
    """As a graph of a mixed step launches: what there is, the device says."""
    from octavo_kernels.gpu.paged_attention import paged_attention

    batch = make_batch(*BATCHES[name], dtype=torch.bfloat16, head_dim=128)
    query, key_cache, value_cache, metadata = on_device(batch, device)
    padded = torch.cat([query, query.new_full((40, *query.shape[1:]), 3.0)])
    table = metadata.block_tables
    metadata = dataclasses.replace(
        metadata,
        query_start_loc=torch.cat([metadata.query_start_loc, torch.full_like(table[0, :1], 9999)]),
        context_lens=torch.cat([metadata.context_lens, torch.full_like(table[0, :2], 9999)]),
        block_tables=torch.cat([table, torch.full_like(table[:1], 2**30)]),
        num_decodes=min(len(padded), 16),
        num_chunks=4,
        num_chunk_tokens=len(padded),
    )

    out = paged_attention(padded, key_cache, value_cache, metadata, scale=0.1, **features)

    expected = reference(
        batch.query.float(), batch.key_cache.float(), batch.value_cache.float(), batch.metadata,
        scale=0.1, **features,
    )  # fmt: skip
    actual = out[: len(query)].float().cpu()
    torch.testing.assert_close(actual, expected, atol=1.6e-2, rtol=1.6e-2)


@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 140)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_ragged_batch_matches_reference(
    make_batch: MakeBatch, device: str, sequences: list[tuple[int, int]], seed: int
) -> None:
    sequences = sorted(sequences, key=lambda each: each[0] != 1)
    query_lens = [new for new, _ in sequences]
    check(make_batch(query_lens, [new + old for new, old in sequences], seed=seed), device)


@pytest.mark.parametrize(
    "features",
    [
        {"sliding_window": 1},
        {"sliding_window": 40},
        {"soft_cap": 3.0},
        {"alibi_slopes": torch.tensor([0.5, 0.25, 0.125, 0.0625])},
        {"sliding_window": 100, "soft_cap": 5.0, "alibi_slopes": torch.tensor([0.3, 0.2, 0.1, 0])},
    ],
    ids=lambda features: "+".join(features),
)
def test_features_match_reference(
    make_batch: MakeBatch, device: str, features: dict[str, Any]
) -> None:
    check(make_batch([1, 1, 12, 40], [90, 640, 12, 161]), device, **features)


@pytest.mark.parametrize("sliding_window", [0, 90])
@pytest.mark.parametrize("workers", [1, 3, 40])
def test_any_number_of_workers(
    make_batch: MakeBatch, device: str, workers: int, sliding_window: int
) -> None:
    """From several sequences each to 64 keys each: more parts than are joined at once."""
    from octavo_kernels.gpu.decode_attention import DecodeConfig, decode_attention

    batch = make_batch([1] * 4, [1, 130, 2300, 65], num_heads=2, num_kv_heads=1)
    query, key_cache, value_cache, metadata = on_device(batch, device)
    out = torch.full_like(query, float("nan"))
    decode_attention(
        query, key_cache, value_cache, metadata, out,
        scale=0.125, sliding_window=sliding_window, soft_cap=0.0, alibi_slopes=None,
        config=DecodeConfig(block_n=32, num_warps=4, num_stages=2, workers=workers),
    )  # fmt: skip
    expected = reference(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=0.125,
        sliding_window=sliding_window,
    )  # fmt: skip
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_a_padded_row_reads_nothing_and_is_zero(make_batch: MakeBatch, device: str) -> None:
    from octavo_kernels.gpu.paged_attention import paged_attention

    batch = make_batch([1, 1, 1], [33, 20, 300])
    query, key_cache, value_cache, metadata = on_device(batch, device)
    metadata.context_lens[1] = 0
    metadata.block_tables[1] = 2**30
    out = torch.full_like(query, float("nan"))
    paged_attention(query, key_cache, value_cache, metadata, scale=0.125, out=out)
    expected = reference(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=0.125
    )
    expected[1] = 0
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


def test_query_and_out_may_be_slices(make_batch: MakeBatch, device: str) -> None:
    from octavo_kernels.gpu.paged_attention import paged_attention

    batch = make_batch([1, 8], [20, 8])
    query, key_cache, value_cache, metadata = on_device(batch, device)
    fused = torch.full((9, 8, 64), float("nan"), device=device)
    fused[:, :4] = query
    out = torch.zeros(9, 6, 64, device=device)
    rest = (key_cache, value_cache, metadata)
    paged_attention(fused[:, :4], *rest, scale=0.125, out=out[:, 2:])
    assert torch.equal(out[:, 2:], paged_attention(query, *rest, scale=0.125))
    assert not out[:, :2].any()


def test_large_scores_do_not_overflow(make_batch: MakeBatch, device: str) -> None:
    from octavo_kernels.gpu.paged_attention import paged_attention

    batch = make_batch([1, 30], [700, 30])
    batch.query.mul_(100)
    expected = reference(batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=1.0)
    actual = paged_attention(*on_device(batch, device), scale=1.0)
    # Scores of ~1,000 carry an absolute rounding error of ~1e-4, their weights a relative one.
    torch.testing.assert_close(actual.cpu(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.gpu
def test_a_captured_decode_follows_its_buffers(make_batch: MakeBatch) -> None:
    """One graph, replayed on contexts and block tables it was not captured with."""
    from octavo_kernels.gpu.paged_attention import paged_attention

    small, large = make_batch([1] * 3, [1, 5, 3]), make_batch([1] * 3, [900, 40, 333], seed=1)
    query, key_cache, value_cache, metadata = on_device(large, "cuda")
    final = metadata.context_lens.clone()
    metadata.context_lens.copy_(small.metadata.context_lens)
    caches = (key_cache, value_cache)
    paged_attention(query, *caches, metadata, scale=0.125)
    graph, unused = torch.cuda.CUDAGraph(), dataclasses.replace(metadata)
    with torch.cuda.graph(graph):
        for _ in range(2):  # as layers do
            out = paged_attention(query, *caches, unused, scale=0.125)
    metadata.context_lens.copy_(final)
    out.fill_(float("nan"))
    graph.replay()
    expected = reference(
        large.query, large.key_cache, large.value_cache, large.metadata, scale=0.125
    )
    torch.testing.assert_close(out.cpu(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_a_cache_past_two_to_the_31_elements() -> None:
    from octavo_kernels.gpu.paged_attention import paged_attention

    num_blocks = 2**31 // (16 * 128) + 100
    values = torch.zeros(num_blocks, 1, 16, 128, dtype=torch.bfloat16, device="cuda")
    keys = torch.zeros_like(values).transpose(2, 3)
    values[-1] = 1.0
    keys[-1] = 1.0
    metadata = AttentionMetadata.from_numpy(
        np.array([0, 1, 17]), np.array([16, 16]), np.full((2, 1), num_blocks - 1),
        np.zeros(17, int), num_decodes=1, device="cuda",
    )  # fmt: skip
    query = torch.randn(17, 4, 128, dtype=torch.bfloat16, device="cuda")
    out = paged_attention(query, keys, values, metadata, scale=0.1)
    torch.testing.assert_close(out, torch.ones_like(out))
