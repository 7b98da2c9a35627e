"""CUDA graphs of an encoder's small steps, by tokens and by how many prompts they leave room for.

Launches of attention are made for all prompts that there may be, which takes time where there are
fewer: steps of few prompts have graphs of their own.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from octavo_runtime.worker.gpu.step_graphs import StepGraphs

# Larger steps compute for longer than their launches take, one by one.
_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096)
# (tokens per prompt on average, smallest size, largest size)
_KINDS = ((128, 192, 4096), (8, 16, 2048))


class GraphKey(NamedTuple):
    """Tokens, and how many prompts they may be of."""

    num_tokens: int
    num_prompts: int


def graph_keys(max_num_tokens: int) -> list[GraphKey]:
    """Of steps up to `max_num_tokens` or 4,096 tokens."""
    largest = min(max_num_tokens, _SIZES[-1])
    sizes = [*(size for size in _SIZES if size < largest), largest]
    return [
        GraphKey(size, max(1, size // tokens_per_prompt))
        for tokens_per_prompt, first, last in _KINDS
        for size in sizes
        if first <= size <= last
    ]


class EncoderGraphs:
    """keys: of the graphs that `capture` makes."""

    def __init__(self, keys: Sequence[GraphKey]) -> None:
        self.keys = sorted(keys)
        self._graphs = StepGraphs(range(len(self.keys)))

    def capture(self, run: Callable[[GraphKey], Tensor]) -> None:
        """See `StepGraphs.capture`."""
        self._graphs.capture(lambda index: run(self.keys[index]))

    def key_for(self, num_tokens: int, num_prompts: int) -> GraphKey | None:
        """The smallest that holds a step; None where there is none or none was captured."""
        if self._graphs.size_for(0) is None:
            return None
        fits = (k for k in self.keys if k.num_tokens >= num_tokens and k.num_prompts >= num_prompts)
        return next(fits, None)

    def replay(self, key: GraphKey) -> Tensor:
        """See `StepGraphs.replay`."""
        return self._graphs.replay(self.keys.index(key))

    def drop(self) -> None:
        self._graphs.drop()
