"""What rank 0 tells the other ranks, and what they answer.

A step is told without what only sampling needs, and with those blocks of a sequence alone that the
other ranks do not know yet.
"""

from collections.abc import Mapping, Sequence

import msgspec

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow
from octavo_runtime.worker.model_runner import SampleWork
from octavo_runtime.worker.prompt_scores import PromptPart
from octavo_runtime.worker.step_input import StepSequence

_GREEDY = SamplingRow(SamplingParams(temperature=0.0))  # ranks that do not sample need no more


class SequenceNews(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A `StepSequence`, of whose block table only what follows the known blocks is told."""

    key: str
    token_ids: list[int]
    start: int
    new_blocks: list[int]
    num_shared_tokens: int
    is_last_pending: bool
    lora_slot: int


class Step(msgspec.Struct, array_like=True, frozen=True, tag="step"):
    """samples: indices of the sequences that are sampled. prompts: by index, the offset and the
    number of the tokens that are scored.
    """

    sequences: list[SequenceNews]
    samples: list[int]
    prompts: dict[int, tuple[int, int]]
    released: list[str]


class PutAdapter(msgspec.Struct, array_like=True, frozen=True, tag="adapter"):
    """lora_ranks: by matrix; None empties the slot. The matrices follow by `share_adapter`."""

    slot: int
    lora_ranks: dict[str, int] | None


class Call(msgspec.Struct, array_like=True, frozen=True, tag="call"):
    """A method of the runner, to be answered."""

    method: str
    arguments: list[int]


class Done(msgspec.Struct, array_like=True, frozen=True, tag="done"):
    value: int | None


class Failed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    """The last answer of a rank. is_config: what was asked for cannot be had here."""

    message: str
    is_config: bool


Message = Step | PutAdapter | Call
Answer = Done | Failed


class StepWriter:
    """Rank 0's end: knows how many blocks of each sequence the other ranks know."""

    def __init__(self) -> None:
        self._num_blocks: dict[str, int] = {}

    def write(
        self, sequences: Sequence[StepSequence], work: SampleWork, released: Sequence[str]
    ) -> Step:
        for key in released:
            self._num_blocks.pop(key, None)
        return Step(
            [self._news(each) for each in sequences],
            list(work.rows),
            {index: (part.offset, len(part.token_ids)) for index, part in work.prompts.items()},
            list(released),
        )

    def _news(self, sequence: StepSequence) -> SequenceNews:
        table = sequence.block_table
        known = self._num_blocks.get(sequence.key, 0)
        self._num_blocks[sequence.key] = len(table)
        return SequenceNews(
            sequence.key,
            list(sequence.token_ids),
            sequence.start,
            list(table[known:]),
            sequence.num_shared_tokens,
            sequence.is_last_pending,
            sequence.lora_slot,
        )


class StepReader:
    """Another rank's end: keeps the block tables."""

    def __init__(self) -> None:
        self._tables: dict[str, list[int]] = {}

    def read(self, step: Step) -> tuple[list[StepSequence], SampleWork, list[str]]:
        """Arguments of `ModelRunner.launch`."""
        for key in step.released:
            self._tables.pop(key, None)
        return [self._sequence(each) for each in step.sequences], _work(step), step.released

    def _sequence(self, news: SequenceNews) -> StepSequence:
        table = self._tables.setdefault(news.key, [])
        table += news.new_blocks
        return StepSequence(
            news.token_ids,
            news.start,
            table,
            news.num_shared_tokens,
            news.key,
            news.is_last_pending,
            news.lora_slot,
        )


def _work(step: Step) -> SampleWork:
    prompts: Mapping[int, PromptPart] = {
        index: PromptPart(offset, [0] * count, wanted=0)
        for index, (offset, count) in step.prompts.items()
    }
    return SampleWork(dict.fromkeys(step.samples, _GREEDY), prompts=prompts)
