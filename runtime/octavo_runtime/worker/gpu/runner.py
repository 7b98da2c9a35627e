"""Steps on one NVIDIA GPU. The host prepares and launches; it waits for tokens alone.

A step is: one copy of what is new, one launch that makes its inputs, the forward pass (a replayed
graph where there is one of its size), logits, sampling, one copy of the tokens back.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from octavo_kernels.lora import LoRARows
from octavo_kernels.metadata import AttentionMetadata
from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.token_mask import apply_token_masks
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.worker.gpu.device_sampler import (
    DeviceSampler,
    DeviceSamples,
    StepSampler,
    new_event,
)
from octavo_runtime.worker.gpu.host_weights import HostWeights
from octavo_runtime.worker.gpu.shared_sampler import shared_sampler
from octavo_runtime.worker.gpu.step_forward import StepForward
from octavo_runtime.worker.model_runner import ModelRunner, SampleWork, StepResult
from octavo_runtime.worker.step_input import StepSequence


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
        group: Group = ALONE,
    ) -> None:
        self._host_weights: HostWeights | None = None  # while the model sleeps
        super().__init__(config, model_config, max_model_len, device, group)
        has_own_rules = bool(config.logits_processors) or config.logprobs_mode != "raw_logprobs"
        self.overlaps = not has_own_rules
        self._device_sampler: StepSampler = DeviceSampler(
            self.sampler, is_all_on_host=has_own_rules
        )
        if group.size > 1:
            self._device_sampler = shared_sampler(self._device_sampler, group)
        self._max_model_len = max_model_len
        self._forward = StepForward(config, max_model_len, self.device, self._compute)
        self.num_graphs = self._forward.num_graphs
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
        hidden = self._forward.run(sequences, work.rows, released)
        starts = np.cumsum([0, *(each.num_new_tokens for each in sequences)])
        prompts = {
            index: self._score(
                hidden[starts[index] : starts[index + 1]], part, sequences[index].lora_slot
            )
            for index, part in work.prompts.items()
        }
        indices = list(work.rows)
        is_decode = sequences[-1].num_new_tokens == 1  # those with one token come first
        slots = [sequences[index].lora_slot for index in indices]
        samples = self._sample(hidden, work, slots, is_decode) if indices else None
        return RunningGpuStep(indices, samples, prompts, begin, new_event(self.device))

    def _compute(
        self, token_ids: Tensor, attention: AttentionMetadata, rows: LoRARows | None
    ) -> Tensor:
        if self._adapters is not None:
            self._adapters.step.rows = rows
        hidden: Tensor = self.model(
            ForwardBatch(
                token_ids=token_ids,
                positions=attention.positions,
                attention=attention,
                kv_caches=self.kv_caches,
                cos_sin=self.cos_sin,
            )
        )
        return hidden

    def _sample(
        self, hidden: Tensor, work: SampleWork, slots: Sequence[int], is_decode: bool
    ) -> DeviceSamples:
        """slots: of the adapters of the sequences that are sampled."""
        rows, inputs = list(work.rows.values()), self._forward.samples
        count = len(rows)
        is_whole = is_decode and list(work.rows) == list(range(count))
        last = hidden[:count] if is_whole else hidden[inputs.index[:count]]
        logits = self._logits(last, slots)
        if work.masks is not None:
            places = {index: place for place, index in enumerate(work.rows)}
            apply_token_masks(logits, {places[i]: mask for i, mask in work.masks().items()})
        token_ids, samples = self._device_sampler.sample(logits, rows, inputs)
        self._forward.last_tokens[inputs.row[:count]] = token_ids
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
            self.allocate_kv_cache(1)
            graph_bytes = self._forward.largest_graph_bytes()
            super().drop_kv_cache()
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
        """Loads what steps launch, and captures the graphs. Raises `ConfigError` without room."""
        try:
            with torch.inference_mode():
                with self.model.only_first_layer():
                    self._run_each_kind(max_model_len)
                self._forward.capture()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"the first steps do not fit beside the weights and the KV cache: {error} Lower "
                "--gpu-memory-utilization, or use a GPU that no other process uses"
            ) from error

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
            self.allocate_kv_cache(self._forward.width)
            self._run_each_kind(self._max_model_len)
        self.model_config = config
        self._forward.last_tokens.zero_()  # nothing has drawn them
        super().drop_kv_cache()
        self._free_unused()

    def _run_each_kind(self, max_model_len: int) -> None:
        """A step of each size of a graph, logits of each of decodes, and a step of each kind,
        sampled with filters and without.
        """
        self._forward.run_each_size()
        for size in self._config.cuda_graph_sizes or [self._config.max_num_seqs]:
            self._logits(
                self._new(size, self.model_config.hidden_size, dtype=self.dtype), [-1] * size
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
        if self._adapters is not None:
            steps += [[replace(each, lora_slot=0) for each in step] for step in steps]
        for step in steps:
            for params in (SamplingParams(), SamplingParams(top_p=0.9, logprobs=1)):
                rows = {index: SamplingRow(params) for index in range(len(step))}
                self.launch(step, SampleWork(rows)).result()
        self._forward.release(["warm-up", "warm-up 2"])

    def load_model(self) -> None:
        try:
            super().load_model()
        except torch.OutOfMemoryError as error:
            super().drop_model()
            raise _no_room_for_weights(error, self._config) from error

    def drop_model(self) -> None:
        self._forward.drop_graphs()
        self._host_weights = None
        super().drop_model()
        self._free_unused()

    def offload_model(self) -> None:
        if self._host_weights is None:
            self._forward.drop_graphs()
            self._host_weights = HostWeights(self.model)
            self._free_unused()

    def restore_model(self) -> None:
        if self._host_weights is not None:
            try:
                self._host_weights.restore()
            except torch.OutOfMemoryError as error:
                raise _no_room_for_weights(error, self._config) from error
            self._host_weights = None

    def drop_kv_cache(self) -> None:
        self._forward.drop_graphs()
        self._forward.forget_rows()
        super().drop_kv_cache()
        self._free_unused()

    def _free_unused(self) -> None:
        """Gives what torch keeps for later back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_largest_step(self) -> None:
        """A step of as many tokens as there may be, and logits and samples of all sequences."""
        num_rows, total = self._config.max_num_seqs, self._config.max_num_batched_tokens
        length = min(total, self._max_model_len)
        count = max(1, min(total // length, num_rows))
        self.allocate_kv_cache(1)
        slot = -1 if self._adapters is None else 0
        hidden = self._forward.run_zeros([length] * count, slot)
        if self._adapters is not None:
            self._adapters.use([slot] * num_rows)
        logits = self.model.compute_logits(hidden[torch.arange(num_rows) % len(hidden)])
        rows = [SamplingRow(SamplingParams(top_p=0.9, logprobs=1))] * num_rows
        self._device_sampler.sample(logits, rows, self._forward.samples)
        super().drop_kv_cache()

    def _new(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


def _no_room_for_weights(error: torch.OutOfMemoryError, config: ResolvedConfig) -> ConfigError:
    free, total = torch.cuda.mem_get_info()
    what, advice = "the weights do", "Choose"
    if config.lora is not None:
        what = "the weights and the slots of adapters do"
        advice = "Lower --max-loras or --max-lora-rank, or choose"
    return ConfigError(
        f"{what} not fit: of the GPU's {_gib(total)}, {_gib(free)} are free, and then: {error} "
        f"{advice} a smaller model or dtype, or a GPU that no other process uses"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
