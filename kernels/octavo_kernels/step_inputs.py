"""A step's inputs, made on the device from what it already holds and the little that is new.

The device keeps a row for every running sequence: its block table and the token sampled last. A
step sends, for each of its sequences, which row it has, where it starts, the tokens and blocks that
the row does not hold yet; one launch makes the flat arrays of the forward pass from that.

    sent:  row 7, start 32, tokens [c0 c1 c2]      row 2, start 17, tokens []  (the last is known
    kept:  table[7] = [4 9 | 11]  ← new block 11   table[2] = [3 8]             to the device only)
    made:  token_ids, positions, slot_mapping, context_lens, block_tables of the step
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from octavo_kernels.reference import step_inputs as reference


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """What the device keeps of running sequences.

    block_tables: [num_rows, width] int32. last_tokens: [num_rows] int64.
    """

    block_tables: Tensor
    last_tokens: Tensor


@dataclass(frozen=True, slots=True)
class StepChanges:
    """What a step of S sequences and T tokens brings, all int32 on the device.

    rows:            [S] row of each sequence; -1: padding, which gets no token and no context
    starts:          [S] position of the first new token
    query_start_loc: [S + 1] first token of each sequence in the step
    num_shared:      [S] leading positions whose KV is not written
    token_starts:    [S + 1] where the sequence's tokens lie in `tokens`; where they are one fewer
                     than its new tokens, the last is the row's `last_tokens`
    tokens:          the new tokens that the host knows
    block_starts:    [S + 1] where the sequence's new blocks lie in `blocks`
    first_columns:   [S] place of the first of them in the row's block table
    blocks:          blocks that the rows do not hold yet
    """

    rows: Tensor
    starts: Tensor
    query_start_loc: Tensor
    num_shared: Tensor
    token_starts: Tensor
    tokens: Tensor
    block_starts: Tensor
    first_columns: Tensor
    blocks: Tensor


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What the forward pass reads. Only what the step has is written.

    token_ids, positions, slot_mapping: [T] int64; slot -1: not written to the cache.
    context_lens: [S] int32. block_tables: [S, width] int32.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    context_lens: Tensor
    block_tables: Tensor


def prepare_step_inputs(
    changes: StepChanges,
    rows: SequenceRows,
    out: StepBuffers,
    *,
    num_sequences: int,
    block_size: int,
) -> None:
    """Takes new blocks into `rows` and fills `out` for the first `num_sequences` sequences.

    Padding (row -1) may have tokens in `query_start_loc`: they become token 0 at position 0, slot
    -1, context 0.
    """
    if changes.rows.is_cuda:
        from octavo_kernels.gpu import step_inputs as gpu

        gpu.prepare_step_inputs(
            changes, rows, out, num_sequences=num_sequences, block_size=block_size
        )
    else:
        reference.prepare_step_inputs(
            changes, rows, out, num_sequences=num_sequences, block_size=block_size
        )
