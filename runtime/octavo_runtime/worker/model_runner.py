"""One device's model and KV cache, and the steps that it runs. A kind of device is a subclass."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from octavo_kernels.kv_cache import new_kv_cache
from octavo_protocol.errors import ConfigError
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import KVCache
from octavo_runtime.layers.rotary import rotary_table
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.processors import LogitsProcessors, load_processor_classes
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler
from octavo_runtime.layers.token_mask import TokenMask
from octavo_runtime.model_config import ModelConfig, resolve_dtype, resolve_kv_cache_dtype
from octavo_runtime.models.loader import load_dummy_weights, load_weights
from octavo_runtime.models.registry import build_model
from octavo_runtime.worker.prompt_scores import PromptPart, score_prompt
from octavo_runtime.worker.step_input import StepSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """By index of the sequence in the step: sampled rows, and scores of prompt tokens.

    device_s: seconds that the device took; None where it cannot tell.
    """

    sampled: dict[int, SampledRow] = field(default_factory=dict)
    prompts: dict[int, list[TokenScores]] = field(default_factory=dict)
    device_s: float | None = None


class RunningStep(Protocol):
    def result(self) -> StepResult:
        """Waits for the step's end. To be called once, in the order of the steps."""

    def is_done(self) -> bool:
        """`result` would not wait."""


@dataclass(frozen=True, slots=True)
class SampleWork:
    """How the sequences of a step are sampled and scored, by their index in it.

    rows: how to sample after the last new token; sequences that are not in it (in the middle of
    their prompt) yield nothing. masks: the tokens that a grammar allows; called when the logits
    are there, so that the masks are computed beside the forward pass. prompts: what to score.
    """

    rows: Mapping[int, SamplingRow] = field(default_factory=dict)
    masks: Callable[[], Mapping[int, TokenMask]] | None = None
    prompts: Mapping[int, PromptPart] = field(default_factory=dict)


class ModelRunner(ABC):
    """Loads a model onto `device`, owns its KV cache and launches steps.

    overlaps: a step may be launched while the one before it still runs, with its sampled tokens
    pending. stages: seconds of start-up by stage, in order.
    """

    overlaps: bool

    def __init__(
        self, config: ResolvedConfig, model_config: ModelConfig, max_model_len: int, device: str
    ) -> None:
        self.stages: dict[str, float] = {}
        self.device = torch.device(device)
        self.model_config = model_config
        self.block_size = config.block_size
        self.dtype = resolve_dtype(config.dtype, model_config.dtype, device)
        self.kv_dtype = resolve_kv_cache_dtype(config.kv_cache_dtype, self.dtype, self.device.type)
        self._config = config
        started = time.perf_counter()
        self.load_model()
        self.stages["weights"] = time.perf_counter() - started
        table = rotary_table(model_config.rope, model_config.head_dim, max_model_len)
        self.cos_sin = table.to(self.device)
        self.kv_caches: list[KVCache] = []
        self.logprobs_mode = config.logprobs_mode
        self.sampler = Sampler(config.logprobs_mode, self._processors(config))

    @abstractmethod
    def launch(
        self,
        sequences: Sequence[StepSequence],
        work: SampleWork,
        released: Sequence[str] = (),
    ) -> RunningStep:
        """Starts a step; those with one new token come first.

        released: keys of sequences that have given up their blocks since the last launch.
        """

    @abstractmethod
    def kv_memory_bytes(self) -> int:
        """What the KV cache may take of this device's memory. Raises `ConfigError`."""

    @abstractmethod
    def warm_up(self, max_model_len: int) -> None:
        """Pays what the first steps would cost more; writes only to block 0 and its successors."""

    @property
    def kv_block_bytes(self) -> int:
        """Bytes of one block over all layers, keys and values."""
        config = self.model_config
        elements = 2 * config.num_layers * self.block_size * config.num_kv_heads * config.head_dim
        return elements * self.kv_dtype.itemsize

    def load_model(self) -> None:
        """Builds the model and reads its weights; also what `drop_model` gave up.

        Raises `ConfigError` where they cannot be read or do not fit.
        """
        with torch.device(self.device):
            self.model = build_model(self.model_config, self.dtype)
        if self._config.load_format == "dummy":
            load_dummy_weights(self.model, self._config.seed)
        else:
            load_weights(self.model, self._config.model)

    def drop_model(self) -> None:
        """Frees the weights; no step may follow before `load_model`. Again: nothing."""
        self.__dict__.pop("model", None)

    def offload_model(self) -> None:  # noqa: B027  # a CPU's weights are there already
        """Moves the weights to host memory; no step may follow before `restore_model`."""

    def restore_model(self) -> None:  # noqa: B027
        """Takes back what `offload_model` moved. Raises `ConfigError`; may then be repeated."""

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Raises `ConfigError` with the arithmetic when the memory cannot be had."""
        config = self.model_config
        try:
            self.kv_caches = [
                KVCache(
                    *new_kv_cache(
                        num_blocks,
                        self.block_size,
                        config.num_kv_heads,
                        config.head_dim,
                        dtype=self.kv_dtype,
                        device=self.device,
                    )
                )
                for _ in range(config.num_layers)
            ]
        except RuntimeError as error:
            raise ConfigError(
                f"cannot allocate the KV cache: {num_blocks} blocks x {self.kv_block_bytes} bytes "
                f"= {num_blocks * self.kv_block_bytes / 2**30:.2f} GiB. Lower "
                "--kv-cache-memory-bytes or --max-model-len"
            ) from error

    def drop_kv_cache(self) -> None:
        """Frees the KV cache; no step may follow before `allocate_kv_cache`."""
        self.kv_caches.clear()

    def _score(self, hidden: Tensor, part: PromptPart) -> list[TokenScores]:
        """Scores on the CPU, whatever the device: a rare wish, and far from any floor."""
        return score_prompt(
            hidden,
            part,
            lambda rows: self.model.compute_logits(rows).cpu(),
            self.model_config.vocab_size,
            self.logprobs_mode,
        )

    def _processors(self, config: ResolvedConfig) -> LogitsProcessors | None:
        classes = load_processor_classes(config.logits_processors)
        if not classes:
            return None
        return LogitsProcessors([kind(config, torch.device("cpu"), False) for kind in classes])
