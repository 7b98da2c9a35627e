"""CUDA graphs of decode steps, one for each size of a ladder of batch sizes."""

import bisect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 up to 256, every 16 beyond; the last is `max_num_seqs`.

    A batch runs in the next larger one, so few steps compute much padding.
    """
    ladder = [1, 2, 4, *range(8, 257, 8), *range(272, max_num_seqs, 16)]
    return sorted({size for size in ladder if size < max_num_seqs} | {max_num_seqs})


class DecodeGraphs:
    """The same launches as a graph: one call to the driver instead of hundreds.

    All graphs share one pool of memory: only one of them runs at a time, and what it returns is
    read before the next one.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sorted(sizes)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def capture(self, run: Callable[[int], Tensor]) -> None:
        """run: computes a step of so many sequences from and to memory that stays where it is, and
        copies nothing from the host: a replay would copy it again. Its kernels have run before,
        so that none is compiled or loaded in a capture.

        Largest first, so that the smaller ones fit into its memory.
        """
        pool = None
        for size in reversed(self.sizes):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                output = run(size)
            pool = graph.pool()
            self._graphs[size] = graph, output

    def size_for(self, num_sequences: int) -> int | None:
        """The graph that holds a batch; None where none is large enough or none was captured."""
        place = bisect.bisect_left(self.sizes, num_sequences)
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
