"""Rows by adapter, as a graph finds them: at the same places in every step, whatever is in it."""

import pytest
import torch

from octavo_kernels.lora import LoRAPart, LoRARows, LoRASlots
from octavo_kernels.reference.lora import add_lora
from octavo_runtime.layers.lora import DECODE_TILE, MIXED_TILE
from octavo_runtime.worker.gpu.adapter_rows import AdapterRows
from octavo_runtime.worker.gpu.staging import StepStaging

_NUM_SLOTS, _SIZE = 3, 24


@pytest.fixture
def staging() -> StepStaging:
    most = AdapterRows.most_tiles(_SIZE, _NUM_SLOTS)
    return StepStaging(
        torch.device("cpu"),
        max_sequences=_SIZE,
        max_tokens=_SIZE,
        max_blocks=1,
        max_lora_tiles=most,
    )


def _slots() -> LoRASlots:
    ranks = torch.full((_NUM_SLOTS, 1), 2, dtype=torch.int32)
    parts = [LoRAPart(0, 6)]
    slots = LoRASlots.new(
        ranks, ranks.numpy(), parts, max_rank=2, in_features=4, dtype=torch.float32
    )
    slots.a.normal_()
    slots.b.normal_()
    return slots


@pytest.mark.parametrize("tile_rows", [DECODE_TILE, MIXED_TILE])
def test_rows_of_a_graph_are_those_of_each_step_that_is_sent(
    staging: StepStaging, tile_rows: int
) -> None:
    torch.manual_seed(0)
    slots, x = _slots(), torch.randn(_SIZE, 4)
    adapter_rows = AdapterRows(staging, _NUM_SLOTS)
    captured = adapter_rows.empty(_SIZE, tile_rows)

    def added(rows: LoRARows | None) -> torch.Tensor:
        y = torch.zeros(_SIZE, 6)
        if rows is not None:
            add_lora(y, x, slots, rows)
        return y

    staging.write(adapter_rows.no_tiles())
    assert torch.equal(added(captured), torch.zeros(_SIZE, 6))
    for of_sequence, lens in [
        ([2, 0, -1, 2, 1], [1, 1, 1, 9, 12]),
        ([1], [20]),
        ([0, 1, 2] * 8, [1] * _SIZE),
        ([-1, 2], [1, 7]),
    ]:
        _, sent = adapter_rows.group(of_sequence, lens, _SIZE, tile_rows)
        staging.write(sent)
        assert torch.equal(added(captured), added(LoRARows.of(of_sequence, lens)))


def test_without_slots_nothing_is_kept_for_them() -> None:
    assert AdapterRows.most_tiles(_SIZE, 0) == 0
    staging = StepStaging(torch.device("cpu"), max_sequences=1, max_tokens=1, max_blocks=1)
    assert staging.lora_order.numel() == staging.lora_tiles.numel() == 0
    assert AdapterRows(staging, 0).no_tiles()["lora_tiles"].size == 0
