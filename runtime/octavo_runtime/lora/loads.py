"""Adapters on their way into host memory: read in threads, taken in by the engine's own.

Loads of one name are done one after the other, in order, so that the last one asked for stays.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from octavo_runtime.lora.adapter import LoRAAdapter

_NUM_THREADS = 2  # adapters in memory beyond the host tier's bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """path: the adapter's folder. answer: set when the adapter can be used, or cannot."""

    name: str
    path: Path
    load_inplace: bool = False
    pinned: bool = False
    started: float = field(default_factory=time.perf_counter)
    answer: Future[dict[str, Any]] = field(default_factory=Future)


class AdapterLoads:
    """read: called in a thread. on_done: called in a thread whenever one has been read, or failed.
    All other methods belong to one thread.
    """

    def __init__(
        self, read: Callable[[str, Path], LoRAAdapter], on_done: Callable[[], None]
    ) -> None:
        self._read = read
        self._on_done = on_done
        self._threads = ThreadPoolExecutor(
            _NUM_THREADS, thread_name_prefix="adapter-load", initializer=_use_one_core
        )
        self._queues: dict[str, deque[Load]] = {}  # the first one of each is being read
        self._reading: dict[str, Future[LoRAAdapter]] = {}

    @property
    def has_done(self) -> bool:
        """`take_done` would give something."""
        return any(future.done() for future in self._reading.values())

    def start(self, load: Load) -> None:
        self._queues.setdefault(load.name, deque()).append(load)
        if load.name not in self._reading:
            self._begin(load)

    def take_done(self) -> list[tuple[Load, Future[LoRAAdapter]]]:
        """Loads that have ended since the last call, each with what was read."""
        ended = [name for name, future in self._reading.items() if future.done()]
        done = []
        for name in ended:
            queue = self._queues[name]
            done.append((queue.popleft(), self._reading.pop(name)))
            if queue:
                self._begin(queue[0])
            else:
                del self._queues[name]
        return done

    def wait(self) -> bool:
        """Blocks until none is being read. False: there was none."""
        return bool(wait(self._reading.values()).done)

    def close(self) -> None:
        """Ends the threads, once they have read what they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, load: Load) -> None:
        future = self._threads.submit(self._read, load.name, load.path)
        self._reading[load.name] = future
        future.add_done_callback(lambda _: self._on_done())


def _use_one_core() -> None:
    """Keeps torch from spreading this thread's work over the cores that compute the steps."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # That is also what threads get that start later; one of them puts it back for the others.
    restore = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    restore.start()
    restore.join()
