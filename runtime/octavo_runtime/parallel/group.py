"""The ranks that compute one model together, and what they exchange. A group of one does nothing.

On GPUs by NCCL, in the order of the current stream, so that graphs can hold it; on CPUs by Gloo.
"""

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad


class Group:
    """rank: this process' place among `size`. processes: torch's process group; None: of one."""

    def __init__(self, rank: int, size: int, processes: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._processes = processes
        self._abort_lock = threading.Lock()

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, in x itself."""
        if self.size > 1:
            options = dist.AllreduceOptions()
            options.asyncOp = False
            _wait(self._processes.allreduce([x], options))
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x, in x itself."""
        if self.size > 1:
            options = dist.BroadcastOptions()
            options.asyncOp = False
            _wait(self._processes.broadcast([x], options))
        return x

    def gather_columns(self, part: Tensor, total: int) -> Tensor:
        """[num_rows, total] on rank 0: the ranks' parts, side by side. Elsewhere zeros, which take
        no memory.

        part: [num_rows, total / size, rounded up]; narrower, or empty, on the last ranks.
        """
        if self.size == 1:
            return part
        width = -(-total // self.size)
        part = pad(part, (0, width - part.shape[1])) if part.shape[1] < width else part.contiguous()
        is_first = self.rank == 0
        parts = [torch.empty_like(part) for _ in range(self.size)] if is_first else []
        options = dist.GatherOptions()
        options.rootRank = 0
        options.asyncOp = False
        _wait(self._processes.gather([parts] if is_first else [], [part], options))
        if is_first:
            return torch.cat(parts, dim=1)[:, :total].contiguous()
        return part.new_zeros(()).expand(len(part), total)

    def abort(self) -> None:
        """Ends the group: exchanges that run end without the other ranks, with any result.

        From any thread. Again: nothing, but the end of the first call is waited for.
        """
        with self._abort_lock:
            processes, self._processes = self._processes, None
            if processes is not None and hasattr(processes, "abort"):
                processes.abort()


ALONE = Group(0, 1)
_TIMEOUT = timedelta(minutes=10)


def connect(rank: int, size: int, device: torch.device, store: Path) -> Group:
    """Waits for the other ranks, which give the same `store`, a file that is there for this alone.

    A GPU's group is of the current device.
    """
    files = dist.FileStore(str(store), size)  # type: ignore[attr-defined]
    processes: Any
    if device.type == "cuda":
        # Multicast memory gains nothing for sums this small, and not every machine has it.
        os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
        processes = dist.ProcessGroupNCCL(files, rank, size, dist.ProcessGroupNCCL.Options())
    else:
        processes = dist.ProcessGroupGloo(files, rank, size, _TIMEOUT)
    group = Group(rank, size, processes)
    group.all_reduce(torch.zeros(1, device=device))  # connects now, not in a graph's capture
    return group


def _wait(work: Any) -> None:
    """For the exchange itself on a CPU; on a GPU only the stream waits."""
    if work is not None:
        work.wait()
