"""Low-rank additions of many adapters in one batch, against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from octavo_kernels.lora import (
    ANY_ROWS,
    LoRAPart,
    LoRARows,
    LoRASlots,
    add_lora,
    add_lora_embedding,
    group_rows,
    max_tiles,
)
from octavo_kernels.reference import lora as reference

_PARTS = [LoRAPart(0, 96), LoRAPart(96, 32), LoRAPart(160, 64)]  # 128 to 160 is of no adapter
_OUT, _IN, _MAX_RANK = 224, 112, 32
# Slot 1 is empty, the last part of slot 2 too.
_RANKS = [[8, 8, 8], [0, 0, 0], [32, 5, 0], [16, 1, 17]]
BATCHES: dict[str, tuple[list[int], list[int] | None]] = {
    "one row": ([3], None),
    "one adapter": ([2, 2, 2], None),
    "every row another": ([3, 0, 2], None),
    "mixed with none": ([-1, 2, 0, -1, 3, 0, 1], None),
    "decodes and prompts": ([0, -1, 3, 2, -1, 0], [1, 1, 1, 40, 33, 65]),
}
# fp32: another order of the sum. bf16: x Aᵀ, about 1, may be rounded by 2^-9, which up to 32 terms
# add up to 5 deviations of 2^-9 * 32^0.5.
_BOUND = {torch.float32: 1e-4, torch.bfloat16: 2**-4}


def _slots(generator: torch.Generator, dtype: torch.dtype, parts: Sequence[LoRAPart]) -> LoRASlots:
    """What is beyond a rank is NaN."""
    ranks = torch.tensor(_RANKS, dtype=torch.int32)[:, : len(parts)]
    slots = LoRASlots.new(
        ranks, ranks.numpy(), parts, max_rank=_MAX_RANK, in_features=_IN, dtype=dtype
    )
    slots.a.fill_(float("nan"))
    slots.b.fill_(float("nan"))
    for slot, of_slot in enumerate(ranks.tolist()):
        for part, rank in enumerate(of_slot):
            a = torch.randn(rank, _IN, generator=generator) * _IN**-0.5
            b = torch.randn(parts[part].size, rank, generator=generator)
            slots.write(slot, part, a.to(dtype), b.to(dtype))
    return slots


@pytest.mark.parametrize("dtype", _BOUND, ids=str)
@pytest.mark.parametrize("name", BATCHES)
def test_each_row_gets_what_its_adapter_adds(
    generator: torch.Generator, backend: str, name: str, dtype: torch.dtype
) -> None:
    slots = _slots(generator, dtype, _PARTS)
    of_sequence, lens = BATCHES[name]
    rows = LoRARows.of(of_sequence, lens)
    assert rows is not None
    num_rows = sum(lens or [1] * len(of_sequence))
    x = torch.randn(num_rows, _IN, generator=generator).to(dtype)
    y = torch.randn(num_rows, _OUT, generator=generator).to(dtype)
    expected = y.clone()
    reference.add_lora(expected, x, slots, rows)
    untouched = np.repeat(of_sequence, lens or 1) < 0
    before = y.clone()

    add_lora(y, x, slots, rows)

    bound = _BOUND[dtype]
    torch.testing.assert_close(y, expected, atol=bound, rtol=bound)
    assert torch.equal(y[untouched], before[untouched])
    assert torch.equal(y[:, 128:160], before[:, 128:160])


def test_embeddings_get_the_columns_of_their_tokens(
    generator: torch.Generator, backend: str
) -> None:
    slots = _slots(generator, torch.float32, [LoRAPart(0, 48)])
    rows = LoRARows.of([2, 0, -1, 1, 3], [3, 1, 2, 1, 1])
    assert rows is not None
    token_ids = torch.randint(0, _IN, (8,), generator=generator)
    y = torch.randn(8, 48, generator=generator)
    expected = y.clone()
    reference.add_lora_embedding(expected, token_ids, slots, rows)

    add_lora_embedding(y, token_ids, slots, rows)

    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_the_reference_is_the_formula(generator: torch.Generator) -> None:
    slots = _slots(generator, torch.float32, _PARTS)
    rows = LoRARows.of([-1, 3])
    assert rows is not None
    x, y = torch.randn(2, _IN, generator=generator), torch.zeros(2, _OUT)
    reference.add_lora(y, x, slots, rows)

    def product(part: int) -> Tensor:
        rank = _RANKS[3][part]
        b = slots.b[3, :rank, slots.columns(part)].T
        return x[1] @ (b @ slots.a[3, part, :rank]).T

    expected = torch.zeros(2, _OUT)
    expected[1] = torch.cat([product(0), product(1), torch.zeros(32), product(2)])
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_rows_are_grouped_by_slot_and_cut_into_tiles() -> None:
    order, tiles = group_rows([2, -1, 0, 2, 0], [1, 1, 3, 2, 1], tile_rows=2)
    assert order.tolist() == [2, 3, 4, 7, 0, 5, 6]
    assert tiles.tolist() == [[0, 0, 2], [0, 2, 4], [2, 4, 6], [2, 6, 7]]


@settings(derandomize=True, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(-1, 4), st.integers(1, 40)), min_size=1, max_size=12),
    tile_rows=st.sampled_from([1, 16, 64, ANY_ROWS]),
)
def test_each_row_with_an_adapter_is_in_one_tile_of_its_slot(
    sequences: list[tuple[int, int]], tile_rows: int
) -> None:
    slots, lens = zip(*sequences, strict=True)
    slot_of_row = np.repeat(slots, lens).tolist()
    order, tiles = group_rows(slots, lens, tile_rows=tile_rows)

    found = [
        (slot, row) for slot, first, end in tiles.tolist() for row in order[first:end].tolist()
    ]

    assert sorted(found) == sorted((slot, row) for row, slot in enumerate(slot_of_row) if slot >= 0)
    assert all(0 < end - first <= tile_rows for _, first, end in tiles.tolist())
    assert len(tiles) <= max_tiles(len(slot_of_row), 5, tile_rows)


def test_a_batch_without_adapters_has_no_rows() -> None:
    assert LoRARows.of([-1, -1]) is None
    assert group_rows([-1])[1].shape == (0, 3)
