"""Engine-wide custom logits processors, by the contract that vLLM's users write them to.

A processor keeps state by row of the batch. Rows come, go and change places between steps; it
learns that from `update_state`, whose parts apply in this order: removed, added, moved.

No torch here: the API side loads the classes too, for `validate_params`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from octavo_protocol.errors import ConfigError
from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.rows import SamplingRow

if TYPE_CHECKING:
    from torch import Tensor


class MoveDirectionality(Enum):
    """UNIDIRECTIONAL: the row at the first index goes to the second; SWAP: both change places."""

    UNIDIRECTIONAL = auto()
    SWAP = auto()


# (index, parameters, prompt token ids, output token ids: a list that grows with the output)
AddedRequest = tuple[int, SamplingParams, Seq[int], list[int]]
MovedRequest = tuple[int, int, MoveDirectionality]


@dataclass(frozen=True, slots=True)
class BatchUpdate:
    """How the batch differs from the step before. An added row replaces what was at its index."""

    batch_size: int
    removed: Seq[int]
    added: Seq[AddedRequest]
    moved: Seq[MovedRequest]


class LogitsProcessor(ABC):
    """A user's processor. Made once per engine."""

    @classmethod  # noqa: B027 (a processor may do without)
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises `ValueError` for parameters (`extra_args`) that it cannot take."""

    @abstractmethod
    def __init__(self, config: Any, device: Any, is_pin_memory: bool) -> None:
        raise NotImplementedError

    @abstractmethod
    def apply(self, logits: Tensor) -> Tensor:
        """logits: [batch_size, vocab_size] fp32, which may be changed in place and returned."""

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """True where the best token stays the best: then greedy rows do without."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before every `apply`; None where the batch is as it was."""


class LogitsProcessors:
    """The engine's processors, told of the batch's changes."""

    def __init__(self, processors: Seq[LogitsProcessor]) -> None:
        self._processors = list(processors)
        self._rows: list[SamplingRow] = []

    def update(self, rows: Seq[SamplingRow]) -> None:
        """The next `apply` is for these rows."""
        change = batch_update(self._rows, rows)
        self._rows = list(rows)
        for processor in self._processors:
            processor.update_state(change)

    def apply(self, logits: Tensor, *, is_argmax_invariant: bool) -> Tensor:
        for processor in self._processors:
            if processor.is_argmax_invariant() == is_argmax_invariant:
                logits = processor.apply(logits)
        return logits


def batch_update(before: Seq[SamplingRow], after: Seq[SamplingRow]) -> BatchUpdate | None:
    """The steps that turn one batch into the other; None where they are equal."""
    if len(before) == len(after) and all(a is b for a, b in zip(before, after, strict=True)):
        return None
    staying = {id(row) for row in after}
    known = {id(row) for row in before}
    places: list[SamplingRow | None] = [row if id(row) in staying else None for row in before]
    removed = [index for index, row in enumerate(places) if row is None]
    holes = iter(removed)
    added: list[AddedRequest] = []
    for row in after:
        if id(row) not in known:
            index = next(holes, len(places))
            places[index : index + 1] = [row]
            added.append((index, row.params, row.prompt_token_ids, row.output_token_ids))
    moved = _close_holes(places) + _reorder(places, after)
    return BatchUpdate(len(after), removed, added, moved)


def load_processor_classes(names: Seq[str]) -> list[type[LogitsProcessor]]:
    """The classes that `module:Class` names. Raises `ConfigError`."""
    return [_load_class(name) for name in names]


def _load_class(name: str) -> type[LogitsProcessor]:
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"logits processor {name!r} cannot be loaded ({error}): write module:Class"
        ) from error
    methods = ("apply", "is_argmax_invariant", "update_state")
    if not isinstance(found, type) or not all(hasattr(found, method) for method in methods):
        raise ConfigError(
            f"logits processor {name!r} must be a class with the methods {', '.join(methods)}"
        )
    return found


def _close_holes(places: list[SamplingRow | None]) -> list[MovedRequest]:
    moved: list[MovedRequest] = []
    for hole in range(len(places)):
        while places and places[-1] is None:
            places.pop()
        if hole < len(places) and places[hole] is None:
            moved.append((len(places) - 1, hole, MoveDirectionality.UNIDIRECTIONAL))
            places[hole] = places.pop()
    return moved


def _reorder(places: list[SamplingRow | None], wanted: Seq[SamplingRow]) -> list[MovedRequest]:
    moved: list[MovedRequest] = []
    position = {id(row): index for index, row in enumerate(places)}
    for index, row in enumerate(wanted):
        current = position[id(row)]
        if current != index:
            other = places[index]
            places[index], places[current] = row, other
            position[id(row)], position[id(other)] = index, current
            moved.append((current, index, MoveDirectionality.SWAP))
    return moved
