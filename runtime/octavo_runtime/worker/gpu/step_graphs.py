"""CUDA graphs of steps, one for each size of a ladder: sequences of decodes, or tokens of mixed
steps.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Larger steps compute for longer than their launches take, one by one. 544 and 576: prompts of 512
# beside decodes; products of so many rows take 0.90 and 0.95 of those of 640 on an H200.
_MIXED_SIZES = (32, 64, 128, 256, 384, 512, 544, 576, 640, 768, 896, 1024, 1152, 1280, 1536, 1792)
_LARGEST_MIXED = 2048
# Launches of a graph leave room for so many; steps with more prompts go one by one.
MAX_CHUNKS = 8


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 up to 256, every 16 beyond; the last is `max_num_seqs`.

    A batch runs in the next larger one, so few steps compute much padding.
    """
    ladder = [1, 2, 4, *range(8, 257, 8), *range(272, max_num_seqs, 16)]
    return sorted({size for size in ladder if size < max_num_seqs} | {max_num_seqs})


def mixed_graph_sizes(max_num_tokens: int) -> list[int]:
    """Up to `max_num_tokens` or 2,048, which is the last of them."""
    largest = min(max_num_tokens, _LARGEST_MIXED)
    return [*(size for size in _MIXED_SIZES if size < largest), largest]


class StepGraphs:
    """The same launches as a graph: one call to the driver instead of hundreds.

    All graphs share one pool of memory: only one of them runs at a time, and what it returns is
    read before the next one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sorted(sizes)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def capture(self, run: Callable[[int], Tensor], pool: Any = None) -> Any:
        """The pool of memory, which graphs that never run beside these may be given.

        run: computes a step of that size from and to memory that stays where it is, and copies
        nothing from the host: a replay would copy it again. Its kernels have run before, so that
        none is compiled or loaded in a capture.

        Largest first, so that the smaller ones fit into its memory.
        """
        for size in reversed(self.sizes):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                output = run(size)
            pool = graph.pool()
            self._graphs[size] = graph, output
        return pool

    def size_for(self, extent: int) -> int | None:
        """The graph that holds a step; None where none is large enough or none was captured."""
        place = bisect.bisect_left(self.sizes, extent)
        if not self._graphs or place == len(self.sizes):
            return None
        return self.sizes[place]

    def replay(self, size: int) -> Tensor:
        """What `run(size)` returned, computed anew; valid until the next replay."""
        graph, output = self._graphs[size]
        graph.replay()
        return output

    def drop(self) -> None:
        """Frees their memory, before the weights or the KV cache that they read."""
        self._graphs.clear()
