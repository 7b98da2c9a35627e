"""What a step computes of each sequence, and the same as flat arrays for the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepSequence:
    """New tokens of one sequence: `token_ids` at positions start, start+1, …

    num_shared_tokens: leading positions whose KV exists and is not written again.
    key: names the sequence from step to step; needed where steps overlap.
    is_last_pending: one more token follows, which a step that still runs samples for `key`.
    lora_slot: of its adapter; -1 = none.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    num_shared_tokens: int = 0
    key: str = ""
    is_last_pending: bool = False
    lora_slot: int = -1

    @property
    def num_new_tokens(self) -> int:
        return len(self.token_ids) + self.is_last_pending


@dataclass(frozen=True, slots=True)
class StepInput:
    """A ragged batch, flattened; sequences with one new token come first.

        sequence      |   0   |   1   |        2         |
        token_ids     |   a   |   b   | c0  c1  c2  c3   |
        positions     |  17   |   5   | 32  33  34  35   |
        slot_mapping  |  65   |  21   | 96  97  98  99   |   block * block_size + offset; -1 = keep

    token_ids, positions, slot_mapping: [num_tokens] int64.
    query_start_loc: [num_seqs + 1] int32.
    context_lens: [num_seqs] int32, tokens in the cache including the new ones.
    block_tables: [num_seqs, max_blocks] int32, padded with 0.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slot_mapping: NDArray[np.int64]
    query_start_loc: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    block_tables: NDArray[np.int32]
    num_decodes: int

    @classmethod
    def build(cls, sequences: Sequence[StepSequence], block_size: int) -> "StepInput":
        query_lens = np.array([len(s.token_ids) for s in sequences], dtype=np.int32)
        starts = np.array([s.start for s in sequences], dtype=np.int32)
        shared = np.array([s.num_shared_tokens for s in sequences], dtype=np.int64)
        width = max(len(s.block_table) for s in sequences)
        tables = np.zeros((len(sequences), width), dtype=np.int32)
        for row, sequence in enumerate(sequences):
            tables[row, : len(sequence.block_table)] = sequence.block_table
        owner = np.repeat(np.arange(len(sequences)), query_lens)
        query_start_loc = np.concatenate([[0], np.cumsum(query_lens)]).astype(np.int32)
        positions = np.arange(len(owner)) - query_start_loc[owner] + starts[owner]
        blocks = tables[owner, positions // block_size].astype(np.int64)
        slots = blocks * block_size + positions % block_size
        slots[positions < shared[owner]] = -1
        return cls(
            token_ids=np.fromiter(
                (token for s in sequences for token in s.token_ids), dtype=np.int64
            ),
            positions=positions.astype(np.int64),
            slot_mapping=slots,
            query_start_loc=query_start_loc,
            context_lens=starts + query_lens,
            block_tables=tables,
            num_decodes=int((query_lens == 1).sum()),
        )
