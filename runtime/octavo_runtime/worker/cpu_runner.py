"""Steps on the CPU: one after the other, in the caller's thread."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo_kernels.metadata import AttentionMetadata
from octavo_runtime.config import ResolvedConfig
from octavo_runtime.layers.attention import ForwardBatch
from octavo_runtime.layers.token_mask import apply_token_masks
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.parallel.group import ALONE, Group
from octavo_runtime.worker.model_runner import ModelRunner, SampleWork, StepResult
from octavo_runtime.worker.step_input import StepInput, StepSequence

_WARM_UP_TOKENS = 32


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A `RunningStep` that is over."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value

    def is_done(self) -> bool:
        return True


class CpuModelRunner(ModelRunner):
    overlaps = False

    def __init__(
        self,
        config: ResolvedConfig,
        model_config: ModelConfig,
        max_model_len: int,
        group: Group = ALONE,
    ) -> None:
        super().__init__(config, model_config, max_model_len, "cpu", group)

    @torch.inference_mode()
    def launch(
        self,
        sequences: Sequence[StepSequence],
        work: SampleWork,
        released: Sequence[str] = (),
    ) -> FinishedStep:
        step = StepInput.build(sequences, self.block_size)
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
        slots = [each.lora_slot for each in sequences]
        if self._adapters is not None:
            self._adapters.use(slots, [each.num_new_tokens for each in sequences])
        hidden = self.model(batch)
        starts = step.query_start_loc
        scores = {
            index: self._score(hidden[starts[index] : starts[index + 1]], part, slots[index])
            for index, part in work.prompts.items()
        }
        if not work.rows:
            return FinishedStep(StepResult(prompts=scores))
        last = starts[1:] - 1
        indices = list(work.rows)
        logits = self._logits(hidden[torch.from_numpy(last[indices])], [slots[i] for i in indices])
        if work.masks is not None:
            places = {index: place for place, index in enumerate(indices)}
            apply_token_masks(logits, {places[i]: mask for i, mask in work.masks().items()})
        sampled = self.sampler.sample(logits, list(work.rows.values()))
        return FinishedStep(StepResult(dict(zip(indices, sampled, strict=True)), scores))

    def kv_memory_bytes(self) -> int:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return int(available * self._config.kv_memory_fraction / self._group.size)

    def warm_up(self, max_model_len: int) -> None:
        """Compiles kernels: a prompt and one decode through the first blocks, and a mask."""
        num_tokens = min(_WARM_UP_TOKENS, max_model_len - 1)
        table = range(-(-(num_tokens + 1) // self.block_size))
        slot = -1 if self._adapters is None else 0  # empty, but its kernels run
        for tokens, start in ((num_tokens, 0), (1, num_tokens)):
            self.launch([StepSequence([0] * tokens, start, table, lora_slot=slot)], SampleWork())
        logits = torch.zeros(1, self.model_config.vocab_size, dtype=self.dtype)
        apply_token_masks(logits, {0: np.zeros(1, dtype=np.int32)})
