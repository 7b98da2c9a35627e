from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from octavo_kernels.step_inputs import SequenceRows, StepBuffers, StepChanges


def prepare_step_inputs(
    changes: StepChanges,
    rows: SequenceRows,
    out: StepBuffers,
    *,
    num_sequences: int,
    block_size: int,
) -> None:
    for s in range(num_sequences):
        row = int(changes.rows[s])
        first, end = changes.query_start_loc[s : s + 2].tolist()
        if row < 0:
            out.token_ids[first:end] = 0
            out.positions[first:end] = 0
            out.slot_mapping[first:end] = -1
            out.context_lens[s] = 0
            continue
        start, table = int(changes.starts[s]), rows.block_tables[row]
        begin, stop = changes.block_starts[s : s + 2].tolist()
        column = int(changes.first_columns[s])
        table[column : column + stop - begin] = changes.blocks[begin:stop]
        begin, stop = changes.token_starts[s : s + 2].tolist()
        out.token_ids[first : first + stop - begin] = changes.tokens[begin:stop]
        if stop - begin < end - first:
            out.token_ids[end - 1] = rows.last_tokens[row]
        positions = torch.arange(start, start + end - first, device=table.device)
        slots = table[positions // block_size].long() * block_size + positions % block_size
        out.positions[first:end] = positions
        out.slot_mapping[first:end] = slots.masked_fill(positions < changes.num_shared[s], -1)
        out.context_lens[s] = start + end - first
        used = -(-(start + end - first) // block_size)
        out.block_tables[s, :used] = table[:used]
