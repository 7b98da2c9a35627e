"""What one step tells every attention layer: whose its tokens are, where keys and values lie.

    tokens of the step   [ seq 0 | seq 1 | ... | seq S-2          | seq S-1     ]   T in all
    query_start_loc      0       1       2 ...                                  T
                         └── num_decodes, one token each ──┘└─ prefill chunks ──┘

Built once per step from host arrays; layers read it, nobody writes it. A CUDA graph has one that it
was captured with: sizes on the host then say what there may be, `counts` on the device what is.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo_kernels.backend import KernelError

IntArray = npt.NDArray[np.integer]

# Tokens of a prefill chunk that one work item covers: small enough to balance over threads.
_TILE_TOKENS = 16


@dataclass(frozen=True)
class AttentionMetadata:
    """Ragged batch of S sequences with T new tokens.

    query_start_loc: [S + 1] int32, first token of each sequence in the step
    context_lens:    [S] int32, tokens in the cache including this step's new ones
    block_tables:    [S, max_blocks] int32; entries past the context are never read
    slot_mapping:    [T] int64, flat slot of each new token; -1: do not write
    positions:       [T] int64, place of each new token in its sequence
    num_decodes:     the first num_decodes sequences have one new token; the rest have any number
    num_chunks:      how many the rest are; num_chunk_tokens: the tokens of all of them
    counts:          [2] int32, num_decodes and S
    work_items:      [num_items, 3] int32: sequence, first new token, number; costly ones first
    shared:          what the first layer computes and those after it read, by what it is
    The *_host fields repeat the first three on the host; on a GPU nobody reads block tables there,
    nor work items. In a graph they are those of the capture.
    """

    query_start_loc: Tensor
    context_lens: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    positions: Tensor
    num_decodes: int
    num_chunks: int
    num_chunk_tokens: int
    counts: Tensor
    work_items: Tensor
    query_start_loc_host: IntArray
    context_lens_host: IntArray
    block_tables_host: IntArray
    shared: dict[Hashable, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_numpy(
        cls,
        query_start_loc: IntArray,
        context_lens: IntArray,
        block_tables: IntArray,
        slot_mapping: IntArray,
        *,
        num_decodes: int,
        device: torch.device | str = "cpu",
    ) -> AttentionMetadata:
        """Checks that the arrays fit each other; KernelError says which does not."""
        starts = np.ascontiguousarray(query_start_loc, dtype=np.int32)
        contexts = np.ascontiguousarray(context_lens, dtype=np.int32)
        tables = np.ascontiguousarray(block_tables, dtype=np.int32)
        slots = np.ascontiguousarray(slot_mapping, dtype=np.int64)
        query_lens = np.diff(starts)
        _check(starts, contexts, tables, slots, query_lens, num_decodes)
        offsets = np.repeat((contexts - query_lens) - starts[:-1], query_lens)
        positions = np.arange(starts[-1], dtype=np.int64) + offsets

        def on_device(array: IntArray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            query_start_loc=on_device(starts),
            context_lens=on_device(contexts),
            block_tables=on_device(tables),
            slot_mapping=on_device(slots),
            positions=on_device(positions),
            num_decodes=num_decodes,
            num_chunks=len(contexts) - num_decodes,
            num_chunk_tokens=int(starts[-1]) - num_decodes,
            counts=on_device(np.array([num_decodes, len(contexts)], dtype=np.int32)),
            work_items=on_device(_work_items(query_lens, contexts)),
            query_start_loc_host=starts,
            context_lens_host=contexts,
            block_tables_host=tables,
        )

    @classmethod
    def on_gpu(
        cls,
        query_start_loc: Tensor,
        context_lens: Tensor,
        block_tables: Tensor,
        slot_mapping: Tensor,
        positions: Tensor,
        *,
        counts: Tensor,
        query_lens_host: IntArray,
        context_lens_host: IntArray,
        num_decodes: int,
        num_chunks: int,
        num_chunk_tokens: int,
    ) -> AttentionMetadata:
        """Of tensors that are on the device already, unchecked."""
        starts = np.concatenate([[0], np.cumsum(query_lens_host)]).astype(np.int32)
        return cls(
            query_start_loc=query_start_loc,
            context_lens=context_lens,
            block_tables=block_tables,
            slot_mapping=slot_mapping,
            positions=positions,
            num_decodes=num_decodes,
            num_chunks=num_chunks,
            num_chunk_tokens=num_chunk_tokens,
            counts=counts,
            work_items=query_start_loc[:0],
            query_start_loc_host=starts,
            context_lens_host=context_lens_host,
            block_tables_host=np.empty((len(query_lens_host), 0), dtype=np.int32),
        )

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens_host)

    @property
    def num_tokens(self) -> int:
        return int(self.query_start_loc_host[-1])

    @cached_property
    def query_lens_host(self) -> IntArray:
        return np.diff(self.query_start_loc_host)


def _check(
    starts: IntArray,
    contexts: IntArray,
    tables: IntArray,
    slots: IntArray,
    query_lens: IntArray,
    num_decodes: int,
) -> None:
    num_sequences = len(contexts)
    if len(starts) != num_sequences + 1 or tables.shape[:1] != (num_sequences,) or tables.ndim != 2:
        raise KernelError(
            f"query_start_loc {starts.shape}, context_lens {contexts.shape} and"
            f" block_tables {tables.shape} disagree"
        )
    if len(slots) != starts[-1] or starts[0] != 0:
        raise KernelError(
            f"slot_mapping has {len(slots)} entries for tokens {starts[0]} to {starts[-1]}"
        )
    if num_sequences and (query_lens.min() < 1 or (contexts < query_lens).any()):
        raise KernelError(
            "every sequence needs at least one new token, and its context must include them"
        )
    if not 0 <= num_decodes <= num_sequences or (query_lens[:num_decodes] != 1).any():
        raise KernelError(f"num_decodes={num_decodes}, but query lengths are {query_lens.tolist()}")


def _work_items(query_lens: IntArray, contexts: IntArray) -> npt.NDArray[np.int32]:
    """Runs of at most _TILE_TOKENS, the longest scans first so that threads end together."""
    tiles = -(-query_lens // _TILE_TOKENS)
    sequence = np.repeat(np.arange(len(query_lens)), tiles)
    first_tile = np.cumsum(tiles) - tiles
    first = (np.arange(len(sequence)) - first_tile[sequence]) * _TILE_TOKENS
    count = np.minimum(query_lens[sequence] - first, _TILE_TOKENS)
    keys_seen = contexts[sequence] - query_lens[sequence] + first + count
    order = np.argsort(-keys_seen * count, kind="stable")
    return np.stack([sequence, first, count], axis=1)[order].astype(np.int32)
