"""The steps of a model that generates. A kind of device is a subclass."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.rotary import rotary_table
from octavo_runtime.layers.sampling.logprobs import TokenScores
from octavo_runtime.layers.sampling.processors import LogitsProcessors, load_processor_classes
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.layers.sampling.sampler import SampledRow, Sampler
from octavo_runtime.layers.token_mask import TokenMask
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.registry import build_model
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.parallel.shards import ModelShards
from octavo_runtime.worker.adapted_model import AdaptedModel
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


class ModelRunner(AdaptedModel):
    """Launches the steps of a model that generates.

    overlaps: a step may be launched while the one before it still runs, with its sampled tokens
    pending. num_graphs: CUDA graphs of its warm-up.

    On a rank of `group`, each call is made on all ranks, in the same order. Only rank 0 samples:
    what the others' steps give is undefined.
    """

    overlaps: bool
    num_graphs = 0

    def __init__(
        self,
        config: ResolvedConfig,
        model_config: ModelConfig,
        max_model_len: int,
        device: str,
        group: Group = ALONE,
    ) -> None:
        self._group = group
        if group.size == 1:
            super().__init__(config, model_config, device)
        else:
            shards = ModelShards(model_config, group.rank, group.size)
            model_config = shards.local_config
            super().__init__(config, model_config, device, shards)
        table = rotary_table(model_config.rope, model_config.head_dim, max_model_len)
        self.cos_sin = table.to(self.device)
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

    def _build(self) -> nn.Module:
        return build_model(self.model_config, self.dtype, self._group)

    def _logits(self, hidden: Tensor, slots: Sequence[int]) -> Tensor:
        """[num_rows, vocab_size]. slots: of each row's adapter."""
        if self._adapters is not None:
            self._adapters.use_for_logits(slots)
        logits: Tensor = self.model.compute_logits(hidden)
        return logits

    def _score(self, hidden: Tensor, part: PromptPart, slot: int) -> list[TokenScores]:
        """Scores on the CPU, whatever the device: a rare wish, and far from any floor.

        slot: of the sequence's adapter.
        """
        return score_prompt(
            hidden,
            part,
            lambda rows: self._logits(rows, [slot] * len(rows)).cpu(),
            self.model_config.vocab_size,
            self.logprobs_mode,
        )

    def _processors(self, config: ResolvedConfig) -> LogitsProcessors | None:
        classes = load_processor_classes(config.logits_processors)
        if not classes:
            return None
        return LogitsProcessors([kind(config, torch.device("cpu"), False) for kind in classes])
