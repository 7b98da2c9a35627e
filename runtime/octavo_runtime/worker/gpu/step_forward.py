"""The forward pass of a step on a GPU: what is sent, the inputs that are made of it, the graphs.

A step runs as the graph of its size, padded, where there is one, else launch by launch. Padding are
rows of no sequence: their tokens write no keys, and attention does not count them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.lora import LoRARows
from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.step_inputs import SequenceRows, StepBuffers, prepare_step_inputs
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.lora import DECODE_TILE, MIXED_TILE
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.worker.gpu.adapter_rows import AdapterRows
from octavo_runtime.worker.gpu.row_table import RowTable
from octavo_runtime.worker.gpu.staging import SampleInputs, StepStaging
from octavo_runtime.worker.gpu.step_graphs import MAX_CHUNKS, StepGraphs, mixed_graph_sizes
from octavo_runtime.worker.step_input import StepSequence

_MASK64 = (1 << 64) - 1
_MAX_NEW_BLOCKS = 1 << 16
_IntArray = NDArray[np.int32]
# Hidden states [num_tokens, hidden_size] of token ids [num_tokens], and their adapters.
Compute = Callable[[Tensor, AttentionMetadata, LoRARows | None], Tensor]


class _Graphs:
    """Of steps with adapters, or of those without."""

    def __init__(self, config: ResolvedConfig, max_tokens: int) -> None:
        has_graphs = bool(config.cuda_graph_sizes)
        self.decode = StepGraphs(config.cuda_graph_sizes)
        self.mixed = StepGraphs(mixed_graph_sizes(max_tokens) if has_graphs else ())
        self.num_graphs = len(self.decode.sizes) + len(self.mixed.sizes)


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
        num_slots = 0 if config.lora is None else config.lora.max_loras
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
            max_lora_tiles=AdapterRows.most_tiles(max_tokens, num_slots),
        )
        self._adapter_rows = AdapterRows(self._staging, num_slots)
        kinds = [False, True] if num_slots else [False]
        self._graphs = {is_adapted: _Graphs(config, max_tokens) for is_adapted in kinds}
        self.num_graphs = sum(each.num_graphs for each in self._graphs.values())

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

    def run_zeros(self, lens: Sequence[int], slot: int) -> Tensor:
        """A step of prompts of these lengths, all with the adapter of a slot or with none: every
        token is number 0, in block 0.
        """
        count = len(lens)
        zeros = [0] * count
        rows, of_adapters = self._group([slot] * count, lens, sum(lens), MIXED_TILE)
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
                **of_adapters,
            }
        )
        tokens = np.array(lens, dtype=np.int32)
        return self._run_one_by_one(tokens, tokens, rows)

    # -- graphs -------------------------------------------------------------------------------

    def run_each_size(self) -> None:
        """A step of the size of each graph, in which no sequence is."""
        for is_adapted, graphs in self._graphs.items():
            self._make_mixed_padding()
            for size in graphs.mixed.sizes:
                self._compute_mixed_padding(size, is_adapted)
            self._send_padding([1] * self._num_rows)
            for size in graphs.decode.sizes:
                self._run_decode_padding(size, is_adapted)

    def capture(self) -> None:
        """To follow `run_each_size`; weights and KV cache then stay where they are."""
        pool = None
        for is_adapted, graphs in reversed(self._graphs.items()):  # those that take most first
            mixed = partial(self._compute_mixed_padding, is_adapted=is_adapted)
            pool = graphs.mixed.capture(mixed, pool)
            decode = partial(self._run_decode_padding, is_adapted=is_adapted)
            pool = graphs.decode.capture(decode, pool)

    def drop_graphs(self) -> None:
        for graphs in self._graphs.values():
            graphs.decode.drop()
            graphs.mixed.drop()

    def largest_graph_bytes(self) -> int:
        """Of the graph whose memory the others share; beside it they take little."""
        is_adapted = max(self._graphs)
        largest = StepGraphs(self._graphs[is_adapted].mixed.sizes[-1:])
        compute = partial(self._compute_mixed_padding, is_adapted=is_adapted)
        self._make_mixed_padding()
        for size in largest.sizes:
            compute(size)
        free, _ = torch.cuda.mem_get_info()
        largest.capture(compute)
        still_free, _ = torch.cuda.mem_get_info()
        largest.drop()
        return max(free - still_free, 0)

    def _send_padding(self, lens: Sequence[int]) -> None:
        self._staging.write(
            {
                "rows": [-1] * len(lens),
                "query_start_loc": _starts(lens),
                "counts": [0, 0],
                **self._adapter_rows.no_tiles(),
            }
        )

    def _run_decode_padding(self, size: int, is_adapted: bool) -> Tensor:
        ones = np.ones(size, dtype=np.int32)
        rows = self._adapter_rows.empty(size, DECODE_TILE) if is_adapted else None
        return self._run_one_by_one(ones, ones, rows)

    def _make_mixed_padding(self) -> None:
        lens = self._graphs[False].mixed.sizes[-1:]
        self._send_padding(lens)
        self._make_inputs(len(lens))

    def _compute_mixed_padding(self, size: int, is_adapted: bool) -> Tensor:
        """Launches for as many sequences as there may be."""
        tokens = np.array([size], dtype=np.int32)
        return self._compute(
            tokens,
            tokens,
            self._adapter_rows.empty(size, MIXED_TILE) if is_adapted else None,
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
        count, slots = len(sequences), _slots(sequences)
        graphs = self._graphs[max(slots) >= 0].decode
        size = graphs.size_for(count)
        padding = np.ones((size or count) - count, dtype=np.int32)
        counts = [count + len(padding)] * 2
        rows, of_adapters = self._group(slots, [1] * count, size or count, DECODE_TILE)
        self._send(sequences, query_lens, padding, samples, counts, of_adapters)
        if size is not None:
            return graphs.replay(size)
        return self._run_one_by_one(query_lens, _contexts(sequences, query_lens), rows)

    def _run_mixed(
        self,
        sequences: Sequence[StepSequence],
        query_lens: _IntArray,
        samples: Mapping[int, SamplingRow],
    ) -> Tensor:
        num_tokens, num_decodes = int(query_lens.sum()), int((query_lens == 1).sum())
        slots = _slots(sequences)
        graphs = self._graphs[max(slots) >= 0].mixed
        fits = len(sequences) - num_decodes <= MAX_CHUNKS
        size = graphs.size_for(num_tokens) if fits else None
        padding = np.array([(size or num_tokens) - num_tokens], dtype=np.int32)
        counts = [num_decodes, len(sequences)]
        lens: list[int] = query_lens.tolist()
        rows, of_adapters = self._group(slots, lens, size or num_tokens, MIXED_TILE)
        self._send(sequences, query_lens, padding, samples, counts, of_adapters)
        if size is None:
            return self._run_one_by_one(query_lens, _contexts(sequences, query_lens), rows)
        self._make_inputs(len(sequences) + 1)
        return graphs.replay(size)

    def _group(
        self, slots: Sequence[int], lens: Sequence[int], num_rows: int, tile_rows: int
    ) -> tuple[LoRARows | None, dict[str, _IntArray]]:
        """See `AdapterRows.group`; of a step without adapters nothing."""
        if max(slots) < 0:
            return None, {}
        return self._adapter_rows.group(slots, lens, num_rows, tile_rows)

    def _send(
        self,
        sequences: Sequence[StepSequence],
        query_lens: _IntArray,
        padding: _IntArray,
        samples: Mapping[int, SamplingRow],
        counts: Sequence[int],
        of_adapters: Mapping[str, _IntArray],
    ) -> None:
        """Copies what the device does not know. padding: tokens of sequences that are none, after
        the others. counts: see `AttentionMetadata`. of_adapters: from `AdapterRows.group`.
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
                **of_adapters,
            }
        )

    def _run_one_by_one(
        self, query_lens: _IntArray, context_lens: _IntArray, rows: LoRARows | None
    ) -> Tensor:
        """Hidden states [num_tokens, hidden_size] of what was sent."""
        count, num_decodes = len(query_lens), int((query_lens == 1).sum())
        self._make_inputs(count)
        return self._compute(
            query_lens,
            context_lens,
            rows,
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

    def _compute(
        self,
        query_lens: _IntArray,
        context_lens: _IntArray,
        rows: LoRARows | None,
        **sizes: int,
    ) -> Tensor:
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
        return self._compute_model(buffers.token_ids[:num_tokens], attention, rows)


def _slots(sequences: Sequence[StepSequence]) -> list[int]:
    return [each.lora_slot for each in sequences]


def _contexts(sequences: Sequence[StepSequence], query_lens: _IntArray) -> _IntArray:
    return query_lens + np.array([each.start for each in sequences], dtype=np.int32)


def _starts(lens: Sequence[int] | _IntArray) -> NDArray[np.int64]:
    """Where each of them begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lens)])
