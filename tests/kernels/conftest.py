"""Ragged batches over a paged cache whose unread slots are NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo_kernels import AttentionMetadata, kv_cache_shapes, use_cpu_backend

NAN = float("nan")


@dataclass(frozen=True)
class Batch:
    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    metadata: AttentionMetadata
    keys: list[Tensor]  # of each sequence, [context, num_kv_heads, head_dim]
    values: list[Tensor]


MakeBatch = Callable[..., Batch]


def _make_batch(
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    contexts, lens = np.array(context_lens), np.array(query_lens)
    blocks_of = -(-contexts // block_size)
    num_blocks = int(blocks_of.sum()) + 3
    order = torch.randperm(num_blocks, generator=generator).numpy()
    # An entry past the context names a block that does not exist.
    tables = np.full((len(lens), int(blocks_of.max()) + 2), 2**30, dtype=np.int32)
    first = np.cumsum(blocks_of) - blocks_of
    for i, count in enumerate(blocks_of):
        tables[i, :count] = order[first[i] : first[i] + count]
    key_shape, value_shape = kv_cache_shapes(num_blocks, block_size, num_kv_heads, head_dim)
    key_cache = torch.full(key_shape, NAN, dtype=dtype)
    value_cache = torch.full(value_shape, NAN, dtype=dtype)
    keys, values, slots = [], [], []
    for i, context in enumerate(contexts):
        place = np.arange(context)
        block = torch.from_numpy(tables[i, place // block_size].astype(np.int64))
        offset = torch.from_numpy(place % block_size)
        pair = torch.randn(2, int(context), num_kv_heads, head_dim, generator=generator).to(dtype)
        key_cache[block, :, :, offset], value_cache[block, :, offset] = pair[0], pair[1]
        keys.append(pair[0])
        values.append(pair[1])
        slots.append((block * block_size + offset)[context - lens[i] :].numpy())
    starts = np.concatenate([[0], np.cumsum(lens)])
    num_decodes = int(np.argmax(lens != 1)) if (lens != 1).any() else len(lens)
    metadata = AttentionMetadata.from_numpy(
        starts, contexts, tables, np.concatenate(slots), num_decodes=num_decodes
    )
    query = torch.randn(int(starts[-1]), num_heads, head_dim, generator=generator).to(dtype)
    return Batch(query, key_cache, value_cache, metadata, keys, values)


@pytest.fixture(scope="module", autouse=True)
def team() -> Iterator[None]:
    """Two threads share the work of a kernel, whatever the machine has."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    return _make_batch


@pytest.fixture(params=["numba", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both sides of the switch."""
    if request.param == "numba":
        pytest.importorskip("numba")
    with use_cpu_backend(request.param):
        yield request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
