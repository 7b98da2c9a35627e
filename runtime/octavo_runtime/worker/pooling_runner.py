"""Steps of a model that pools, on a CPU or one GPU.

Encoders take whole prompts and have no KV cache. Decoders take chunks, with keys and values in
blocks, as in generation; what pooling needs of a prompt's earlier chunks is kept between steps. A
GPU's results are waited for when they are read, so that the host may plan the next step meanwhile.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from octavo_kernels.metadata import AttentionMetadata
from octavo_protocol.pooling import PoolingParams
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.pooler import Pooler
from octavo_runtime.layers.rotary import rotary_table
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.registry import pooling_model_class
from octavo_runtime.pooling import PoolingConfig, PoolPart
from octavo_runtime.worker.adapted_model import AdaptedModel
from octavo_runtime.worker.encoder_forward import EncoderForward, padded_size
from octavo_runtime.worker.gpu.device_sampler import new_event
from octavo_runtime.worker.gpu.encoder_graphs import EncoderGraphs, graph_keys
from octavo_runtime.worker.gpu.host_weights import HostWeights
from octavo_runtime.worker.prompt_so_far import PromptSoFar
from octavo_runtime.worker.step_input import StepInput, StepSequence

_WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class PoolingWork:
    """New tokens of one prompt. tokens: where they stand; `key` names the prompt.

    prompt_token_ids: of the whole prompt. is_last: the prompt ends with them.
    token_type_ids: of the new tokens; empty: all 0.
    """

    tokens: StepSequence
    prompt_token_ids: Sequence[int]
    params: PoolingParams
    is_last: bool
    token_type_ids: Sequence[int] = ()


class RunningPoolingStep:
    """A step that was launched."""

    def __init__(self, keys: list[str], pooled: list[Tensor]) -> None:
        self._keys = keys
        self._shapes = [list(each.shape) for each in pooled]
        if not pooled:
            return
        together = torch.cat([each.reshape(-1) for each in pooled]).float()
        self._values = together
        if together.is_cuda:
            self._values = torch.empty(together.shape, pin_memory=True)
            self._values.copy_(together, non_blocking=True)
        self._end = new_event(together.device)

    def result(self) -> dict[str, tuple[list[int], bytes]]:
        """Shape and fp32 bytes by key, of the prompts that ended. Waits for the step's end."""
        if not self._shapes:
            return {}
        if self._end is not None:
            self._end.synchronize()
        values = self._values.numpy().astype("<f4", copy=False)
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        parts = np.split(values, np.cumsum(sizes)[:-1])
        return {
            key: (shape, part.tobytes())
            for key, shape, part in zip(self._keys, self._shapes, parts, strict=True)
        }


class PoolingRunner(AdaptedModel):
    """overlaps: a step may be launched while the one before it still runs."""

    def __init__(
        self,
        config: ResolvedConfig,
        model_config: ModelConfig,
        pooling: PoolingConfig,
        max_model_len: int,
    ) -> None:
        self._pooling = pooling
        self._max_model_len = max_model_len
        self._so_far: dict[str, PromptSoFar] = {}
        self._host_weights: HostWeights | None = None  # while a GPU's model sleeps
        self.is_encoder: bool = pooling_model_class(model_config.architecture).is_encoder
        super().__init__(config, model_config, config.device)
        self.overlaps = self.device.type == "cuda"
        if self.is_encoder:
            self._encoder = self._new_encoder(config)
        else:
            table = rotary_table(model_config.rope, model_config.head_dim, max_model_len)
            self._cos_sin = table.to(self.device)

    @torch.inference_mode()
    def launch(
        self, works: Sequence[PoolingWork], released: Sequence[str] = ()
    ) -> RunningPoolingStep:
        """Starts a step; prompts with one new token come first.

        released: keys of prompts that were given up in the middle since the last launch.
        """
        for key in released:
            self._so_far.pop(key, None)
        lengths = [len(work.tokens.token_ids) for work in works]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        if self.is_encoder:
            hidden = self._encoder.run(
                [work.tokens.token_ids for work in works], [work.token_type_ids for work in works]
            )
        else:
            hidden = self._forward([work.tokens for work in works])
        parts, rows = self._parts(works, starts, hidden)
        keys = [work.tokens.key for work in works if work.is_last]
        return RunningPoolingStep(keys, self.pooler(rows, parts) if parts else [])

    @property
    def adapter_targets(self) -> Mapping[str, tuple[int, int]]:
        """Of the model's body: the head sees pooled rows, not those of a step."""
        body = f"{self.model.base_model_prefix}."
        targets = super().adapter_targets
        return {name: shape for name, shape in targets.items() if name.startswith(body)}

    def load_model(self) -> None:
        super().load_model()
        head = self._head if self._pooling.labels else None
        self.pooler = Pooler(self._pooling, head, self.device)

    def drop_model(self) -> None:
        self.__dict__.pop("pooler", None)
        self._drop_graphs()
        self._host_weights = None
        super().drop_model()
        self._free_unused()

    def offload_model(self) -> None:
        if self.device.type == "cuda" and self._host_weights is None:
            self._drop_graphs()
            self._host_weights = HostWeights(self.model)
            self._free_unused()

    def restore_model(self) -> None:
        if self._host_weights is not None:
            self._host_weights.restore()
            self._host_weights = None

    def drop_kv_cache(self) -> None:
        self._so_far.clear()
        super().drop_kv_cache()
        self._free_unused()

    def kv_memory_bytes(self) -> int:
        if self.device.type == "cpu":
            available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return int(available * self._config.kv_memory_fraction)
        return self._gpu_memory_bytes()

    @torch.inference_mode()
    def warm_up(self, max_model_len: int) -> None:
        """Compiles kernels, and captures graphs: a step of a few tokens, pooled in the default way,
        and one of the size of each graph.
        """
        if self.is_encoder and self.device.type == "cuda":
            from octavo_kernels.gpu.rehearsal import rehearsal

            with rehearsal():
                self._encoder.run_each_graph()
            self._encoder.run_each_graph()
            self._encoder.capture()
        token_ids = [0] * min(_WARM_UP_TOKENS, max_model_len)
        table = () if self.is_encoder else range(-(-len(token_ids) // self.block_size))
        params = PoolingParams(task=self._pooling.task)
        work = PoolingWork(StepSequence(token_ids, 0, table), token_ids, params, is_last=True)
        self.launch([work]).result()

    def _head(self, pooled: Tensor) -> Tensor:
        """Logits of pooled rows; on a CPU, of few numbers of them: see `encoder_forward`."""
        count = len(pooled)
        if self.device.type == "cpu":
            pooled = functional.pad(pooled, (0, 0, 0, padded_size(count) - count))
        logits: Tensor = self.model.head(pooled)
        return logits[:count]

    def _new_encoder(self, config: ResolvedConfig) -> EncoderForward:
        encoder = self.model_config.encoder
        # Attention within a window is done by torch, which asks the device for lengths.
        is_fixed = encoder is not None and encoder.modern is None
        keys = graph_keys(config.max_num_batched_tokens) if config.cuda_graph_sizes else []
        return EncoderForward(
            lambda batch: self.model(batch),
            self.device,
            EncoderGraphs(keys if is_fixed else []),
            max_model_len=self._max_model_len,
            reads_types=encoder is not None and encoder.type_vocab_size > 1,
        )

    def _drop_graphs(self) -> None:
        if self.is_encoder:
            self._encoder.drop_graphs()

    def _build(self) -> nn.Module:
        kind = pooling_model_class(self.model_config.architecture)
        built: nn.Module = kind(self.model_config, self.dtype, len(self._pooling.labels))
        return built

    def _forward(self, sequences: Sequence[StepSequence]) -> Tensor:
        step = StepInput.build(sequences, self.block_size)
        self._use_adapters(sequences)
        hidden: Tensor = self.model(
            ForwardBatch(
                token_ids=self._tensor(step.token_ids),
                positions=self._tensor(step.positions),
                attention=AttentionMetadata.from_numpy(
                    step.query_start_loc,
                    step.context_lens,
                    step.block_tables,
                    step.slot_mapping,
                    num_decodes=step.num_decodes,
                    device=self.device,
                ),
                kv_caches=self.kv_caches,
                cos_sin=self._cos_sin,
            )
        )
        self._use_adapters(())
        return hidden

    def _use_adapters(self, sequences: Sequence[StepSequence]) -> None:
        """Of the layers' next inputs; none: for all but a step's rows."""
        if self._adapters is not None:
            self._adapters.use(
                [each.lora_slot for each in sequences], [each.num_new_tokens for each in sequences]
            )

    def _parts(
        self, works: Sequence[PoolingWork], starts: NDArray[np.int32], hidden: Tensor
    ) -> tuple[list[PoolPart], Tensor]:
        """What is to be pooled, and the rows that it stands in: the step's, and behind them those
        of prompts that were computed in several steps.
        """
        parts, rows, num_rows = [], [hidden], len(hidden)
        for work, start, stop in zip(works, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            so_far = self._so_far.pop(work.tokens.key, None)
            if so_far is None and not work.is_last:
                so_far = PromptSoFar(work.params.task, self._pooling.seq_pooling_type)
            if so_far is not None:
                so_far.add(hidden[start:stop])
                if not work.is_last:
                    self._so_far[work.tokens.key] = so_far
                    continue
                rows.append(so_far.whole().to(hidden.dtype))
                start, stop = num_rows, num_rows + len(rows[-1])
                num_rows = stop
            parts.append(PoolPart(start, stop, work.params, work.prompt_token_ids))
        return parts, torch.cat(rows) if len(rows) > 1 else hidden

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _free_unused(self) -> None:
        """Gives what torch keeps for later back to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _gpu_memory_bytes(self) -> int:
        """What `gpu_memory_utilization` leaves beside weights and the largest step."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        length = min(self._config.max_num_batched_tokens, self._max_model_len)
        self.allocate_kv_cache(1)
        tokens = StepSequence([0] * length, 0, [0] * -(-length // self.block_size))
        count = max(1, self._config.max_num_batched_tokens // length)
        self._forward([tokens] * count)
        torch.cuda.synchronize()
        step_bytes = torch.cuda.max_memory_allocated() - before
        self.drop_kv_cache()
        free, total = torch.cuda.mem_get_info()
        wanted = int(total * self._config.gpu_memory_utilization)
        return max(0, wanted - (total - free) - step_bytes)
