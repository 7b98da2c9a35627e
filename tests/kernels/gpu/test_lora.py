"""Shrink and expand in Triton, against the reference, as graphs use them: padded, in tiles."""

from __future__ import annotations

import pytest
import torch

from octavo_kernels.lora import LoRAPart, LoRARows, LoRASlots, max_tiles
from octavo_kernels.reference import lora as reference

pytest.importorskip("triton")

from octavo_kernels.gpu import lora as gpu

_PARTS = (LoRAPart(0, 136), LoRAPart(136, 40), LoRAPart(200, 24))  # 176 to 200 is of no adapter
_OUT, _IN, _MAX_RANK = 224, 1030, 80  # more of all than one program takes
# Slot 1 is empty, the last part of slot 2 too.
_RANKS = [[8, 8, 8], [0, 0, 0], [70, 5, 0], [16, 1, 33]]
_BATCHES: dict[str, tuple[list[int], list[int], int]] = {
    "decodes": ([3, -1, 0, 2, 2, 1, 0, -1], [1] * 8, 4),
    "many of one adapter": ([0] * 19, [1] * 19, 4),
    "decodes and prompts": ([0, -1, 3, 2, 0], [1, 1, 70, 9, 20], 64),
}
# fp32: another order of the sum. Else x Aᵀ, about 1, is rounded, by 2^-11 or 2^-9, and the terms of
# up to 70 ranks add up to 5 deviations of 8 times that; then y, up to 32.
_BOUND = {torch.float32: 2e-4, torch.float16: 2**-5, torch.bfloat16: 2**-3}


def _slots(generator: torch.Generator, dtype: torch.dtype, device: str) -> LoRASlots:
    """What is beyond a rank is NaN."""
    table = torch.zeros(len(_RANKS), 2, 4, dtype=torch.int32)  # a layer's ranks lie among others'
    table[:, 1, :3] = torch.tensor(_RANKS)
    ranks = table.to(device)[:, 1, :3]
    slots = LoRASlots.new(
        ranks, table[:, 1].numpy(), _PARTS, max_rank=_MAX_RANK, in_features=_IN, dtype=dtype
    )
    slots.a.fill_(float("nan"))
    slots.b.fill_(float("nan"))
    for slot, of_slot in enumerate(_RANKS):
        for part, rank in enumerate(of_slot):
            a = torch.randn(rank, _IN, generator=generator) * _IN**-0.5
            b = torch.randn(_PARTS[part].size, rank, generator=generator)
            slots.write(slot, part, a.to(dtype), b.to(dtype))
    return slots


def _padded(rows: LoRARows, num_rows: int, num_slots: int) -> LoRARows:
    """As a graph of `num_rows` has them."""
    count = max_tiles(num_rows, num_slots, rows.tile_rows)
    tiles = torch.zeros(count, 3, dtype=torch.int32, device=rows.tiles.device)
    tiles[: len(rows.tiles)] = rows.tiles
    order = torch.full((num_rows,), 2**30, dtype=torch.int32, device=rows.order.device)
    order[: len(rows.order)] = rows.order
    return LoRARows(order, tiles, [[0, 0, 0]] * count, rows.tile_rows)


@pytest.fixture
def dtypes(device: str) -> list[torch.dtype]:
    # The interpreter truncates where it should round to bf16.
    return [torch.float32, torch.bfloat16 if device == "cuda" else torch.float16]


@pytest.mark.parametrize("name", _BATCHES)
def test_each_row_gets_what_its_adapter_adds(
    generator: torch.Generator, device: str, dtypes: list[torch.dtype], name: str
) -> None:
    of_sequence, lens, tile_rows = _BATCHES[name]
    num_rows = sum(lens)
    rows = LoRARows.of(of_sequence, lens, device=device, tile_rows=tile_rows)
    assert rows is not None
    for dtype in dtypes:
        slots = _slots(generator, dtype, device)
        x = torch.randn(num_rows, _IN, generator=generator).to(dtype).to(device)
        y = torch.randn(num_rows, _OUT, generator=generator).to(dtype).to(device)
        expected = y.clone()
        reference.add_lora(expected, x, slots, rows)

        gpu.add_lora(y, x, slots, _padded(rows, num_rows + 5, len(_RANKS)))

        torch.testing.assert_close(y, expected, atol=_BOUND[dtype], rtol=_BOUND[dtype])


def test_embeddings_get_the_columns_of_their_tokens(
    generator: torch.Generator, device: str
) -> None:
    ranks = torch.tensor([[4], [0], [40]], dtype=torch.int32)
    slots = LoRASlots.new(
        ranks.to(device),
        ranks.numpy(),
        [LoRAPart(0, 72)],
        max_rank=64,
        in_features=99,
        dtype=torch.float32,
    )
    slots.a.normal_()
    slots.b.normal_()
    of_sequence, lens = [2, -1, 0, 1, 2], [1, 1, 18, 2, 3]
    rows = LoRARows.of(of_sequence, lens, device=device, tile_rows=16)
    assert rows is not None
    token_ids = torch.randint(0, 99, (sum(lens),), generator=generator).to(device)
    y = torch.randn(sum(lens), 72, generator=generator).to(device)
    expected = y.clone()
    reference.add_lora_embedding(expected, token_ids, slots, rows)

    gpu.add_lora_embedding(y, token_ids, slots, rows)

    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tile_rows", [1, 3, 16])
def test_rows_never_have_more_tiles_than_there_is_room_for(
    generator: torch.Generator, tile_rows: int
) -> None:
    for num_rows in (1, 2, 7, 40):
        for num_slots in (1, 4, 64):
            slots = torch.randint(0, num_slots, (num_rows,), generator=generator).tolist()
            for given in (slots, list(range(num_slots))[:num_rows] + slots[num_slots:]):
                rows = LoRARows.of(given, tile_rows=tile_rows)
                assert rows is not None
                assert len(rows.tiles) <= max_tiles(num_rows, num_slots, tile_rows)
