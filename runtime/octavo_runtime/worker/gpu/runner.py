"""Steps on one NVIDIA GPU. The host prepares and launches; it waits for tokens alone.

A step is: one copy of what is new, one launch that makes its inputs, the forward pass (a replayed
graph where there is one of its size), logits, sampling, one copy of the tokens back.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo_kernels.metadata import AttentionMetadata
from octavo_kernels.step_inputs import SequenceRows, StepBuffers, prepare_step_inputs
from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.token_mask import apply_token_masks
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.gpu.device_sampler import DeviceSampler, DeviceSamples, new_event
from octavo_runtime.worker.gpu.host_weights import HostWeights
from octavo_runtime.worker.gpu.row_table import RowTable
from octavo_runtime.worker.gpu.staging import StepStaging
from octavo_runtime.worker.gpu.step_graphs import MAX_CHUNKS, StepGraphs, mixed_graph_sizes
from octavo_runtime.worker.model_runner import ModelRunner, SampleWork, StepResult
from octavo_runtime.worker.step_input import StepSequence

_MASK64 = (1 << 64) - 1
_MAX_NEW_BLOCKS = 1 << 16
_IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RunningGpuStep:
    """indices: the sequences that `samples` are of; None: of a step that samples nothing. begin,
    end: events on the device; None where launches are waited for.
    """

    indices: list[int]
    samples: DeviceSamples | None
    prompts: dict[int, list[TokenScores]]
    begin: torch.cuda.Event | None
    end: torch.cuda.Event | None

    def result(self) -> StepResult:
        device_s = None
        if self.begin is not None and self.end is not None:
            self.end.synchronize()
            device_s = self.begin.elapsed_time(self.end) / 1000
        rows = [] if self.samples is None else self.samples.read()
        return StepResult(dict(zip(self.indices, rows, strict=True)), self.prompts, device_s)

    def is_done(self) -> bool:
        return self.end is None or bool(self.end.query())  # type: ignore[no-untyped-call]


class GpuModelRunner(ModelRunner):
    """device: tests run all but the graphs on the CPU."""

    def __init__(
        self,
        config: ResolvedConfig,
        model_config: ModelConfig,
        max_model_len: int,
        device: str = "cuda",
    ) -> None:
        self._host_weights: HostWeights | None = None  # while the model sleeps
        super().__init__(config, model_config, max_model_len, device)
        has_own_rules = bool(config.logits_processors) or config.logprobs_mode != "raw_logprobs"
        self.overlaps = not has_own_rules
        self._device_sampler = DeviceSampler(self.sampler, is_all_on_host=has_own_rules)
        num_rows = config.max_num_seqs
        max_tokens = max(config.max_num_batched_tokens, num_rows)
        width = -(-max_model_len // self.block_size)
        self._max_model_len = max_model_len
        self._table = RowTable(num_rows)
        self._rows = SequenceRows(
            self._new(num_rows, width, dtype=torch.int32), self._new(num_rows, dtype=torch.int64)
        )
        self._buffers = StepBuffers(
            token_ids=self._new(max_tokens, dtype=torch.int64),
            positions=self._new(max_tokens, dtype=torch.int64),
            slot_mapping=self._new(max_tokens, dtype=torch.int64),
            context_lens=self._new(num_rows + 1, dtype=torch.int32),  # padding may be one more
            block_tables=self._new(num_rows, width, dtype=torch.int32),
        )
        self._staging = StepStaging(
            self.device,
            max_sequences=num_rows + 1,
            max_tokens=max_tokens,
            max_blocks=min(num_rows * width, _MAX_NEW_BLOCKS),
        )
        self._decode_graphs = StepGraphs(config.cuda_graph_sizes)
        self._mixed_graphs = StepGraphs(
            mixed_graph_sizes(max_tokens) if config.cuda_graph_sizes else ()
        )
        self.num_graphs = len(self._decode_graphs.sizes) + len(self._mixed_graphs.sizes)
        if self.device.type == "cuda":
            started = time.perf_counter()
            self._compile_kernels()
            self.stages["kernels"] = time.perf_counter() - started

    # -- the step -----------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(
        self,
        sequences: Sequence[StepSequence],
        work: SampleWork,
        released: Sequence[str] = (),
    ) -> RunningGpuStep:
        begin = new_event(self.device)
        self._table.release(released)
        query_lens = np.array([each.num_new_tokens for each in sequences], dtype=np.int32)
        is_decode = int(query_lens[-1]) == 1  # those with one token come first
        hidden = (self._run_decodes if is_decode else self._run_mixed)(
            sequences, query_lens, work.rows
        )
        starts = np.concatenate([[0], np.cumsum(query_lens)])
        prompts = {
            index: self._score(hidden[starts[index] : starts[index + 1]], part)
            for index, part in work.prompts.items()
        }
        indices = list(work.rows)
        samples = self._sample(hidden, work, is_decode) if indices else None
        return RunningGpuStep(indices, samples, prompts, begin, new_event(self.device))

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
        return self._forward(query_lens, _contexts(sequences, query_lens))

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
            return self._forward(query_lens, _contexts(sequences, query_lens))
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

    def _forward(self, query_lens: _IntArray, context_lens: _IntArray) -> Tensor:
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
            block_size=self.block_size,
        )

    def _compute(self, query_lens: _IntArray, context_lens: _IntArray, **sizes: int) -> Tensor:
        """Hidden states, from inputs that were made. sizes: see `AttentionMetadata.on_gpu`."""
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
        hidden: Tensor = self.model(
            ForwardBatch(
                token_ids=buffers.token_ids[:num_tokens],
                positions=buffers.positions[:num_tokens],
                attention=attention,
                kv_caches=self.kv_caches,
                cos_sin=self.cos_sin,
            )
        )
        return hidden

    def _sample(self, hidden: Tensor, work: SampleWork, is_decode: bool) -> DeviceSamples:
        rows, inputs = list(work.rows.values()), self._staging.samples
        count = len(rows)
        is_whole = is_decode and list(work.rows) == list(range(count))
        last = hidden[:count] if is_whole else hidden[inputs.index[:count]]
        logits = self.model.compute_logits(last)
        if work.masks is not None:
            places = {index: place for place, index in enumerate(work.rows)}
            apply_token_masks(logits, {places[i]: mask for i, mask in work.masks().items()})
        token_ids, samples = self._device_sampler.sample(logits, rows, inputs)
        self._rows.last_tokens[inputs.row[:count]] = token_ids
        return samples

    # -- memory and start ---------------------------------------------------------------------

    @torch.inference_mode()
    def kv_memory_bytes(self) -> int:
        """What `gpu_memory_utilization` leaves beside weights, the largest step and graphs."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            self._run_largest_step()
            torch.cuda.synchronize()
            step_bytes = torch.cuda.max_memory_allocated() - before
            graph_bytes = self._largest_graph_bytes()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a step of {self._config.max_num_batched_tokens} tokens and "
                f"{self._config.max_num_seqs} sequences does not fit beside {_gib(before)} of "
                f"weights: {error} Lower --max-num-batched-tokens or --max-num-seqs"
            ) from error
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        used = total - free
        wanted = int(total * self._config.gpu_memory_utilization)
        left = wanted - used - step_bytes - graph_bytes
        if left <= 0:
            raise ConfigError(
                f"no memory is left for the KV cache: {_gib(total)} x gpu_memory_utilization "
                f"{self._config.gpu_memory_utilization} = {_gib(wanted)}, less {_gib(used)} in use "
                f"(of these {_gib(before)} weights), less {_gib(step_bytes)} for a step of "
                f"{self._config.max_num_batched_tokens} tokens and {_gib(graph_bytes)} for CUDA "
                "graphs. Raise --gpu-memory-utilization, or lower --max-num-batched-tokens"
            )
        return left

    def warm_up(self, max_model_len: int) -> None:
        """Loads what steps launch, and captures the graphs."""
        with torch.inference_mode():
            with self.model.only_first_layer():
                self._run_each_kind(max_model_len)
            pool = self._mixed_graphs.capture(self._compute_mixed_padding)
            self._decode_graphs.capture(self._run_padding, pool)

    @torch.inference_mode()
    def _compile_kernels(self) -> None:
        """Rehearses the profile and the warm-up: what they launch is compiled together."""
        from octavo_kernels.gpu.rehearsal import rehearsal

        config = self.model_config
        self.model_config = replace(config, num_layers=1)  # for the KV cache
        # What does not fit in memory is said, with the arithmetic, by the profile.
        does_not_fit = suppress(torch.OutOfMemoryError, ConfigError)
        with rehearsal(), does_not_fit, self.model.only_first_layer():
            self._run_largest_step()
            self.allocate_kv_cache(self._rows.block_tables.shape[1])
            self._run_each_kind(self._max_model_len)
        self.model_config = config
        self._rows.last_tokens.zero_()  # nothing has drawn them
        super().drop_kv_cache()
        self._free_unused()

    def _run_each_kind(self, max_model_len: int) -> None:
        """A step of each size of a graph, logits of each of decodes, and a step of each kind,
        sampled with filters and without.
        """
        self._make_mixed_padding()
        for size in self._mixed_graphs.sizes:
            self._compute_mixed_padding(size)
        sizes = self._decode_graphs.sizes
        self._send_padding([1] * self._config.max_num_seqs)
        for size in sizes:
            self._run_padding(size)
        for size in sizes or [self._config.max_num_seqs]:
            self.model.compute_logits(
                self._new(size, self.model_config.hidden_size, dtype=self.dtype)
            )
        num_tokens = min(self._config.max_num_batched_tokens, max_model_len - 1)
        table = range(-(-(num_tokens + 1) // self.block_size))
        half = num_tokens // 2
        prompt = StepSequence([0] * num_tokens, 0, table, key="warm-up")
        token = StepSequence([0], num_tokens, table, key="warm-up")
        chunk = StepSequence([0] * (num_tokens - half - 1), half, table, key="warm-up 2")
        steps = [[prompt], [token]]
        if chunk.num_new_tokens > 1 and self._config.max_num_seqs > 1:
            steps.append([token, chunk])
        for step in steps:
            for params in (SamplingParams(), SamplingParams(top_p=0.9, logprobs=1)):
                rows = {index: SamplingRow(params) for index in range(len(step))}
                self.launch(step, SampleWork(rows)).result()
        self._table.release(["warm-up", "warm-up 2"])

    def load_model(self) -> None:
        try:
            super().load_model()
        except torch.OutOfMemoryError as error:
            super().drop_model()
            raise _no_room_for_weights(error) from error

    def drop_model(self) -> None:
        self._drop_graphs()
        self._host_weights = None
        super().drop_model()
        self._free_unused()

    def offload_model(self) -> None:
        if self._host_weights is None:
            self._drop_graphs()
            self._host_weights = HostWeights(self.model)
            self._free_unused()

    def restore_model(self) -> None:
        if self._host_weights is not None:
            try:
                self._host_weights.restore()
            except torch.OutOfMemoryError as error:
                raise _no_room_for_weights(error) from error
            self._host_weights = None

    def drop_kv_cache(self) -> None:
        self._drop_graphs()
        self._table = RowTable(self._config.max_num_seqs)  # block tables of nothing
        super().drop_kv_cache()
        self._free_unused()

    def _drop_graphs(self) -> None:
        self._decode_graphs.drop()
        self._mixed_graphs.drop()

    def _free_unused(self) -> None:
        """Gives what torch keeps for later back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _send_padding(self, lens: Sequence[int]) -> None:
        """No sequence, but padding of so many tokens."""
        self._staging.write(
            {"rows": [-1] * len(lens), "query_start_loc": _starts(lens), "counts": [0, 0]}
        )

    def _run_padding(self, size: int) -> Tensor:
        """A decode step in which no sequence is there: what a graph captures."""
        ones = np.ones(size, dtype=np.int32)
        return self._forward(ones, ones)

    def _make_mixed_padding(self) -> None:
        self._send_padding(self._mixed_graphs.sizes[-1:])
        self._make_inputs(len(self._mixed_graphs.sizes[-1:]))

    def _compute_mixed_padding(self, size: int) -> Tensor:
        """A mixed step in which no sequence is there, and as many may be as fit: its graph."""
        tokens = np.array([size], dtype=np.int32)
        return self._compute(
            tokens,
            tokens,
            num_decodes=min(size, self._config.max_num_seqs),
            num_chunks=MAX_CHUNKS,
            num_chunk_tokens=size,
        )

    def _largest_graph_bytes(self) -> int:
        """Of the graph whose memory the others share; beside it they take little."""
        largest = StepGraphs(self._mixed_graphs.sizes[-1:])
        self.allocate_kv_cache(1)
        self._make_mixed_padding()
        for size in largest.sizes:
            self._compute_mixed_padding(size)
        free, _ = torch.cuda.mem_get_info()
        largest.capture(self._compute_mixed_padding)
        still_free, _ = torch.cuda.mem_get_info()
        largest.drop()
        super().drop_kv_cache()
        return max(free - still_free, 0)

    def _run_largest_step(self) -> None:
        """A step of as many tokens as there may be, and logits and samples of all sequences."""
        num_rows, total = self._config.max_num_seqs, self._config.max_num_batched_tokens
        length = min(total, self._max_model_len)
        count = max(1, min(total // length, num_rows))
        lens = np.full(count, length, dtype=np.int32)
        zeros = [0] * count
        self._staging.write(
            {
                "rows": range(count),
                "starts": zeros,
                "query_start_loc": _starts(lens),
                "num_shared": zeros,
                "token_starts": [0, *zeros],  # nothing is sent: every token is number 0,
                "block_starts": [0, *zeros],  # and so is every block
                "first_columns": zeros,
                "counts": [0, count],
            }
        )
        self.allocate_kv_cache(1)
        hidden = self._forward(lens, lens)
        logits = self.model.compute_logits(hidden[torch.arange(num_rows) % len(hidden)])
        rows = [SamplingRow(SamplingParams(top_p=0.9, logprobs=1))] * num_rows
        self._device_sampler.sample(logits, rows, self._staging.samples)
        super().drop_kv_cache()

    def _new(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _contexts(sequences: Sequence[StepSequence], query_lens: _IntArray) -> _IntArray:
    return query_lens + np.array([each.start for each in sequences], dtype=np.int32)


def _starts(lens: Sequence[int] | _IntArray) -> NDArray[np.int64]:
    """Where each of them begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lens)])


def _no_room_for_weights(error: torch.OutOfMemoryError) -> ConfigError:
    free, total = torch.cuda.mem_get_info()
    return ConfigError(
        f"the weights do not fit: of the GPU's {_gib(total)}, {_gib(free)} are free, and then: "
        f"{error} Choose a smaller model or dtype, or a GPU that no other process uses"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
