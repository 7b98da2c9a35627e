"""`prepare_step_inputs` as one launch: a program for each sequence."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo_kernels.step_inputs import SequenceRows, StepBuffers, StepChanges

_TILE = 256


@triton.jit
def _prepare(
    rows_ptr,
    starts_ptr,
    query_start_loc_ptr,
    num_shared_ptr,
    token_starts_ptr,
    tokens_ptr,
    block_starts_ptr,
    first_columns_ptr,
    blocks_ptr,
    tables_ptr,
    tables_stride,
    last_tokens_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    context_lens_ptr,
    step_tables_ptr,
    step_tables_stride,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    sequence = tl.program_id(0)
    row = tl.load(rows_ptr + sequence).to(tl.int64)
    first = tl.load(query_start_loc_ptr + sequence)
    num_new = tl.load(query_start_loc_ptr + sequence + 1) - first
    lanes = tl.arange(0, TILE)
    if row < 0:
        tl.store(context_lens_ptr + sequence, 0)
        for at in range(0, num_new, TILE):
            inside = at + lanes < num_new
            place = first + at + lanes
            tl.store(token_ids_ptr + place, 0, mask=inside)
            tl.store(positions_ptr + place, 0, mask=inside)
            tl.store(slots_ptr + place, -1, mask=inside)
    else:
        start = tl.load(starts_ptr + sequence)
        num_shared = tl.load(num_shared_ptr + sequence)
        context = start + num_new
        tl.store(context_lens_ptr + sequence, context)

        table_ptr = tables_ptr + row * tables_stride
        first_block = tl.load(block_starts_ptr + sequence)
        num_blocks = tl.load(block_starts_ptr + sequence + 1) - first_block
        column = tl.load(first_columns_ptr + sequence)
        for at in range(0, num_blocks, TILE):
            inside = at + lanes < num_blocks
            block = tl.load(blocks_ptr + first_block + at + lanes, mask=inside, other=0)
            tl.store(table_ptr + column + at + lanes, block, mask=inside)
        tl.debug_barrier()  # the table is read by other lanes than have written it

        step_table_ptr = step_tables_ptr + sequence.to(tl.int64) * step_tables_stride
        used = tl.cdiv(context, BLOCK_SIZE)
        for at in range(0, used, TILE):
            inside = at + lanes < used
            block = tl.load(table_ptr + at + lanes, mask=inside, other=0)
            tl.store(step_table_ptr + at + lanes, block, mask=inside)

        first_token = tl.load(token_starts_ptr + sequence)
        num_tokens = tl.load(token_starts_ptr + sequence + 1) - first_token
        last_token = tl.load(last_tokens_ptr + row)
        for at in range(0, num_new, TILE):
            offset = at + lanes
            inside = offset < num_new
            is_sent = offset < num_tokens
            token = tl.load(tokens_ptr + first_token + offset, mask=is_sent, other=0).to(tl.int64)
            token = tl.where(is_sent, token, last_token)
            position = start + offset
            block = tl.load(table_ptr + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
            slot = block * BLOCK_SIZE + position % BLOCK_SIZE
            place = first + offset
            tl.store(token_ids_ptr + place, token, mask=inside)
            tl.store(positions_ptr + place, position.to(tl.int64), mask=inside)
            tl.store(slots_ptr + place, tl.where(position < num_shared, -1, slot), mask=inside)


def prepare_step_inputs(
    changes: StepChanges,
    rows: SequenceRows,
    out: StepBuffers,
    *,
    num_sequences: int,
    block_size: int,
) -> None:
    """See `octavo_kernels.step_inputs.prepare_step_inputs`. Can be captured in a graph."""
    if num_sequences == 0:
        return
    _prepare[(num_sequences,)](
        changes.rows,
        changes.starts,
        changes.query_start_loc,
        changes.num_shared,
        changes.token_starts,
        changes.tokens,
        changes.block_starts,
        changes.first_columns,
        changes.blocks,
        rows.block_tables,
        rows.block_tables.stride(0),
        rows.last_tokens,
        out.token_ids,
        out.positions,
        out.slot_mapping,
        out.context_lens,
        out.block_tables,
        out.block_tables.stride(0),
        BLOCK_SIZE=block_size,
        TILE=_TILE,
        num_warps=4,
    )
