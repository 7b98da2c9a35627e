"""Executes a step plan on the device: inputs, forward pass, sampling. The only code that does.

Reads the plan's sequences and changes none of them.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from octavo_kernels.kv_cache import kv_cache_shapes
from octavo_kernels.metadata import AttentionMetadata
from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.layers.attention import ForwardBatch, KVCache
from octavo_runtime.layers.rotary import rotary_table
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.processors import LogitsProcessors, load_processor_classes
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler
from octavo_runtime.layers.token_mask import TokenMask, apply_token_masks
from octavo_runtime.model_config import ModelConfig, resolve_dtype
from octavo_runtime.models.loader import load_dummy_weights, load_weights
from octavo_runtime.models.registry import build_model
from octavo_runtime.worker.prompt_scores import PromptPart, score_prompt
from octavo_runtime.worker.step_input import StepInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """By index of the sequence in the step: sampled rows, and scores of prompt tokens."""

    sampled: dict[int, SampledRow] = field(default_factory=dict)
    prompts: dict[int, list[TokenScores]] = field(default_factory=dict)


class ModelRunner:
    """One device's model and KV cache.

    stages: seconds of start-up by stage, in order.
    """

    def __init__(self, config: EngineConfig, model_config: ModelConfig, max_model_len: int) -> None:
        self.stages: dict[str, float] = {}
        self.device = "cpu"
        self.model_config = model_config
        self.block_size = config.block_size
        self.dtype = resolve_dtype(config.dtype, model_config.dtype, self.device)
        self._config = config
        started = time.perf_counter()
        self.load_model()
        self.stages["weights"] = time.perf_counter() - started
        self.cos_sin = rotary_table(model_config.rope, model_config.head_dim, max_model_len)
        self.kv_caches: list[KVCache] = []
        self.logprobs_mode = config.logprobs_mode
        self.sampler = Sampler(config.logprobs_mode, self._processors(config))

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        config = self.model_config
        elements = 2 * config.num_layers * self.block_size * config.num_kv_heads * config.head_dim
        return elements * self.dtype.itemsize

    def load_model(self) -> None:
        """Builds the model and reads its weights; also what `drop_model` gave up."""
        self.model = build_model(self.model_config, self.dtype)
        if self._config.load_format == "dummy":
            load_dummy_weights(self.model, self._config.seed)
        else:
            load_weights(self.model, self._config.model)

    def drop_model(self) -> None:
        """Frees the weights; no step may follow before `load_model`."""
        del self.model

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Raises `ConfigError` with the arithmetic when the memory cannot be had."""
        config = self.model_config
        shapes = kv_cache_shapes(num_blocks, self.block_size, config.num_kv_heads, config.head_dim)
        try:
            self.kv_caches = [
                KVCache(*(torch.empty(shape, dtype=self.dtype) for shape in shapes))
                for _ in range(config.num_layers)
            ]
        except RuntimeError as error:
            raise ConfigError(
                f"cannot allocate the KV cache: {num_blocks} blocks x {self.kv_block_bytes} bytes "
                f"= {num_blocks * self.kv_block_bytes / 2**30:.2f} GiB. Lower "
                "--kv-cache-memory-bytes or --max-model-len"
            ) from error

    @torch.inference_mode()
    def execute(
        self,
        step: StepInput,
        rows: Mapping[int, SamplingRow],
        masks: Callable[[], Mapping[int, TokenMask]] | None = None,
        prompts: Mapping[int, PromptPart] | None = None,
    ) -> StepResult:
        """Computes the step's tokens, samples, and scores prompt tokens.

        rows: index of a sequence in the step → how to sample after its last new token. Sequences
        that are not in it (in the middle of their prompt) yield nothing. masks: the tokens that a
        grammar allows, by the same indices; called when the logits are there, so that the masks
        are computed beside the forward pass. prompts: by the same indices.
        """
        batch = ForwardBatch(
            token_ids=torch.from_numpy(step.token_ids),
            positions=torch.from_numpy(step.positions),
            attention=AttentionMetadata.from_numpy(
                step.query_start_loc,
                step.context_lens,
                step.block_tables,
                step.slot_mapping,
                num_decodes=step.num_decodes,
            ),
            kv_caches=self.kv_caches,
            cos_sin=self.cos_sin,
        )
        hidden = self.model(batch)
        starts = step.query_start_loc
        scores = {
            index: self._score(hidden[starts[index] : starts[index + 1]], part)
            for index, part in (prompts or {}).items()
        }
        if not rows:
            return StepResult(prompts=scores)
        last = starts[1:] - 1
        indices = list(rows)
        logits = self.model.compute_logits(hidden[torch.from_numpy(last[indices])])
        if masks is not None:
            places = {index: place for place, index in enumerate(indices)}
            apply_token_masks(logits, {places[i]: mask for i, mask in masks().items()})
        sampled = self.sampler.sample(logits, list(rows.values()))
        return StepResult(dict(zip(indices, sampled, strict=True)), scores)

    def _score(self, hidden: torch.Tensor, part: PromptPart) -> list[TokenScores]:
        vocab_size = self.model_config.vocab_size
        return score_prompt(hidden, part, self.model.compute_logits, vocab_size, self.logprobs_mode)

    def _processors(self, config: EngineConfig) -> LogitsProcessors | None:
        classes = load_processor_classes(config.logits_processors)
        if not classes:
            return None
        device = torch.device(self.device)
        return LogitsProcessors([kind(config, device, False) for kind in classes])
