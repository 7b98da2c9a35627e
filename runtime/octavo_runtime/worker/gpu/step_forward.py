"""The forward pass of a step on a GPU: what is sent, the inputs that are made of it, the graphs.

A step runs as the graph of its size, padded, where there is one, else launch by launch. Padding are
rows of no sequence: their tokens write no keys, and attention does not count them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.step_inputs import SequenceRows, StepBuffers, prepare_step_inputs
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.worker.gpu.row_table import RowTable
from octavo_runtime.worker.gpu.staging import SampleInputs, StepStaging
from octavo_runtime.worker.gpu.step_graphs import MAX_CHUNKS, StepGraphs, mixed_graph_sizes
from octavo_runtime.worker.step_input import StepSequence

_MASK64 = (1 << 64) - 1
_MAX_NEW_BLOCKS = 1 << 16
_IntArray = NDArray[np.int32]
# Hidden states [num_tokens, hidden_size] of token ids [num_tokens].
Compute = Callable[[Tensor, AttentionMetadata], Tensor]


class StepForward:
    """What the device keeps of running sequences, and steps of them. All methods only launch.

    num_graphs: to be captured. width: blocks of the longest sequence. samples: how the last step is
    sampled. last_tokens: [max_num_seqs] int64 by row, to be written by whoever samples.
    """

    def __init__(
        self, config: ResolvedConfig, max_model_len: int, device: torch.device, compute: Compute
    ) -> None:
        self._compute_model = compute
        self._block_size = config.block_size
        self._num_rows = num_rows = config.max_num_seqs
        max_tokens = max(config.max_num_batched_tokens, num_rows)
        self.width = width = -(-max_model_len // config.block_size)

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.last_tokens = zeros(num_rows, dtype=torch.int64)
        self._table = RowTable(num_rows)
        self._rows = SequenceRows(zeros(num_rows, width), self.last_tokens)
        self._buffers = StepBuffers(
            token_ids=zeros(max_tokens, dtype=torch.int64),
            positions=zeros(max_tokens, dtype=torch.int64),
            slot_mapping=zeros(max_tokens, dtype=torch.int64),
            context_lens=zeros(num_rows + 1),  # padding may be one more
            block_tables=zeros(num_rows, width),
        )
        self._staging = StepStaging(
            device,
            max_sequences=num_rows + 1,
            max_tokens=max_tokens,
            max_blocks=min(num_rows * width, _MAX_NEW_BLOCKS),
        )
        self._decode_graphs = StepGraphs(config.cuda_graph_sizes)
        has_graphs = bool(config.cuda_graph_sizes)
        self._mixed_graphs = StepGraphs(mixed_graph_sizes(max_tokens) if has_graphs else ())
        self.num_graphs = len(self._decode_graphs.sizes) + len(self._mixed_graphs.sizes)

    @property
    def samples(self) -> SampleInputs:
        return self._staging.samples

    # -- steps --------------------------------------------------------------------------------

    def run(
        self,
        sequences: Sequence[StepSequence],
        samples: Mapping[int, SamplingRow],
        released: Iterable[str],
    ) -> Tensor:
        """Hidden states, with padding after them; valid until the next step.

        samples: by index of the sequence. released: keys that no longer have their rows.
        """
        self._table.release(released)
        query_lens = np.array([each.num_new_tokens for each in sequences], dtype=np.int32)
        is_decode = int(query_lens[-1]) == 1  # those with one token come first
        run = self._run_decodes if is_decode else self._run_mixed
        return run(sequences, query_lens, samples)

    def release(self, keys: Iterable[str]) -> None:
        self._table.release(keys)

    def forget_rows(self) -> None:
        """Block tables are of nothing any more."""
        self._table = RowTable(self._num_rows)

    def run_zeros(self, lens: Sequence[int]) -> Tensor:
        """A step of prompts of these lengths: every token is number 0, in block 0."""
        count = len(lens)
        zeros = [0] * count
        self._staging.write(
            {
                "rows": range(count),
                "starts": zeros,
                "query_start_loc": _starts(lens),
                "num_shared": zeros,
                "token_starts": [0, *zeros],
                "block_starts": [0, *zeros],
                "first_columns": zeros,
                "counts": [0, count],
            }
        )
        tokens = np.array(lens, dtype=np.int32)
        return self._run_one_by_one(tokens, tokens)

    # -- graphs -------------------------------------------------------------------------------

    def run_each_size(self) -> None:
        """A step of the size of each graph, in which no sequence is."""
        self._make_mixed_padding()
        for size in self._mixed_graphs.sizes:
            self._compute_mixed_padding(size)
        self._send_padding([1] * self._num_rows)
        for size in self._decode_graphs.sizes:
            self._run_decode_padding(size)

    def capture(self) -> None:
        """To follow `run_each_size`; weights and KV cache then stay where they are."""
        pool = self._mixed_graphs.capture(self._compute_mixed_padding)
        self._decode_graphs.capture(self._run_decode_padding, pool)

    def drop_graphs(self) -> None:
        self._decode_graphs.drop()
        self._mixed_graphs.drop()

    def largest_graph_bytes(self) -> int:
        """Of the graph whose memory the others share; beside it they take little."""
        largest = StepGraphs(self._mixed_graphs.sizes[-1:])
        self._make_mixed_padding()
        for size in largest.sizes:
            self._compute_mixed_padding(size)
        free, _ = torch.cuda.mem_get_info()
        largest.capture(self._compute_mixed_padding)
        still_free, _ = torch.cuda.mem_get_info()
        largest.drop()
        return max(free - still_free, 0)

    def _send_padding(self, lens: Sequence[int]) -> None:
        self._staging.write(
            {"rows": [-1] * len(lens), "query_start_loc": _starts(lens), "counts": [0, 0]}
        )

    def _run_decode_padding(self, size: int) -> Tensor:
        ones = np.ones(size, dtype=np.int32)
        return self._run_one_by_one(ones, ones)

    def _make_mixed_padding(self) -> None:
        lens = self._mixed_graphs.sizes[-1:]
        self._send_padding(lens)
        self._make_inputs(len(lens))

    def _compute_mixed_padding(self, size: int) -> Tensor:
        """Launches for as many sequences as there may be."""
        tokens = np.array([size], dtype=np.int32)
        return self._compute(
            tokens,
            tokens,
            num_decodes=min(size, self._num_rows),
            num_chunks=MAX_CHUNKS,
            num_chunk_tokens=size,
        )

    # -- internals ----------------------------------------------------------------------------

    def _run_decodes(
        self,
        sequences: Sequence[StepSequence],
        query_lens: _IntArray,
        samples: Mapping[int, SamplingRow],
    ) -> Tensor:
        count = len(sequences)
        size = self._decode_graphs.size_for(count)
        padding = np.ones((size or count) - count, dtype=np.int32)
        self._send(sequences, query_lens, padding, samples, [count + len(padding)] * 2)
        if size is not None:
            return self._decode_graphs.replay(size)
        return self._run_one_by_one(query_lens, _contexts(sequences, query_lens))

    def _run_mixed(
        self,
        sequences: Sequence[StepSequence],
        query_lens: _IntArray,
        samples: Mapping[int, SamplingRow],
    ) -> Tensor:
        num_tokens, num_decodes = int(query_lens.sum()), int((query_lens == 1).sum())
        fits = len(sequences) - num_decodes <= MAX_CHUNKS
        size = self._mixed_graphs.size_for(num_tokens) if fits else None
        padding = np.array([(size or num_tokens) - num_tokens], dtype=np.int32)
        self._send(sequences, query_lens, padding, samples, [num_decodes, len(sequences)])
        if size is None:
            return self._run_one_by_one(query_lens, _contexts(sequences, query_lens))
        self._make_inputs(len(sequences) + 1)
        return self._mixed_graphs.replay(size)

    def _send(
        self,
        sequences: Sequence[StepSequence],
        query_lens: _IntArray,
        padding: _IntArray,
        samples: Mapping[int, SamplingRow],
        counts: Sequence[int],
    ) -> None:
        """Copies what the device does not know. padding: tokens of sequences that are none, after
        the others. counts: see `AttentionMetadata`.
        """
        rows = [self._table.row(each.key) for each in sequences]
        columns: list[int] = []
        blocks: list[int] = []
        block_counts: list[int] = []
        for row, each in zip(rows, sequences, strict=True):
            column, new = self._table.new_blocks(row, each.block_table)
            if len(blocks) + len(new) > self._staging.max_blocks:
                table = self._rows.block_tables[row, column : column + len(new)]
                table.copy_(torch.tensor(new, dtype=torch.int32))
                new = ()
            columns.append(column)
            blocks += new
            block_counts.append(len(new))
        tokens: list[int] = []
        for each in sequences:
            tokens += each.token_ids
        lens = np.concatenate([query_lens, padding])
        known = [len(each.token_ids) for each in sequences]
        ends = np.cumsum(query_lens) - 1
        params = [row.params for row in samples.values()]
        positions = [
            sequences[i].start + int(query_lens[i]) - len(row.prompt_token_ids)
            for i, row in samples.items()
        ]
        seeds = np.array([row.seed & _MASK64 for row in samples.values()], dtype=np.uint64)
        self._staging.write(
            {
                "rows": rows + [-1] * len(padding),
                "starts": [each.start for each in sequences],
                "query_start_loc": _starts(lens),
                "num_shared": [each.num_shared_tokens for each in sequences],
                "token_starts": _starts(known),
                "tokens": tokens,
                "block_starts": _starts(block_counts),
                "first_columns": columns,
                "counts": counts,
                "blocks": blocks,
                "index": ends[np.array(list(samples), dtype=np.int64)],
                "row": [rows[i] for i in samples],
                "temperature": [0.0 if p.is_greedy else p.temperature for p in params],
                "top_k": [max(p.top_k, 0) for p in params],
                "top_p": [p.top_p for p in params],
                "min_p": [p.min_p for p in params],
                "seed": seeds.view(np.int64),
                "position": positions,
            }
        )

    def _run_one_by_one(self, query_lens: _IntArray, context_lens: _IntArray) -> Tensor:
        """Hidden states [num_tokens, hidden_size] of what was sent."""
        count, num_decodes = len(query_lens), int((query_lens == 1).sum())
        self._make_inputs(count)
        return self._compute(
            query_lens,
            context_lens,
            num_decodes=num_decodes,
            num_chunks=count - num_decodes,
            num_chunk_tokens=int(query_lens.sum()) - num_decodes,
        )

    def _make_inputs(self, num_sequences: int) -> None:
        prepare_step_inputs(
            self._staging.changes,
            self._rows,
            self._buffers,
            num_sequences=num_sequences,
            block_size=self._block_size,
        )

    def _compute(self, query_lens: _IntArray, context_lens: _IntArray, **sizes: int) -> Tensor:
        """From inputs that were made. sizes: see `AttentionMetadata.on_gpu`."""
        buffers, num_tokens = self._buffers, int(query_lens.sum())
        attention = AttentionMetadata.on_gpu(
            self._staging.changes.query_start_loc,
            buffers.context_lens,
            buffers.block_tables,
            buffers.slot_mapping[:num_tokens],
            buffers.positions[:num_tokens],
            counts=self._staging.counts,
            query_lens_host=query_lens,
            context_lens_host=context_lens,
            **sizes,
        )
        return self._compute_model(buffers.token_ids[:num_tokens], attention)


def _contexts(sequences: Sequence[StepSequence], query_lens: _IntArray) -> _IntArray:
    return query_lens + np.array([each.start for each in sequences], dtype=np.int32)


def _starts(lens: Sequence[int] | _IntArray) -> NDArray[np.int64]:
    """Where each of them begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lens)])
