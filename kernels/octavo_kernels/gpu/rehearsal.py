"""Kernels compiled all at once before work begins, rather than one by one as it goes on.

Triton compiles a kernel for the dtypes, constants and alignments of the launch that needs it first,
and a launcher in C for it. A rehearsal goes through the same launches without one of them
happening: what is missing is compiled by threads (most of a compilation happens outside of Python),
loaded, and kept where the launches will look for it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from triton.runtime.jit import KernelInterface


class _Compilers(ThreadPoolExecutor):
    """Threads that wait for `may_begin`: Python would keep a rehearsal waiting for them. They load
    kernels onto the GPU of the thread that makes them.
    """

    def __init__(self) -> None:
        device = torch.cuda.current_device() if torch.cuda.is_available() else -1  # -1: none
        num_threads = len(os.sched_getaffinity(0))
        super().__init__(num_threads, initializer=torch.cuda.set_device, initargs=(device,))
        self.may_begin = threading.Event()

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:  # type: ignore[override]
        return super().submit(self._load, compile_kernel)

    def _load(self, compile_kernel: Callable[[], Any]) -> Any:
        self.may_begin.wait()
        kernel = compile_kernel()
        _ = kernel.run  # makes the launcher, and loads the kernel onto the device
        return kernel


@contextmanager
def rehearsal() -> Iterator[None]:
    """Triton's kernels that this thread launches inside are only compiled; all are at the end.

    What torch itself launches runs, on memory that holds anything. A kernel that cannot be compiled
    says so when it is launched in earnest.
    """
    with _Compilers() as compilers, triton.AsyncCompileMode(compilers, ignore_errors=True):
        try:
            with _no_launches():
                yield
        finally:
            compilers.may_begin.set()


@contextmanager
def _no_launches() -> Iterator[None]:
    launch = KernelInterface.__getitem__
    rehearsing = threading.get_ident()

    def compiled_only(kernel: Any, grid: Any) -> Callable[..., object]:
        if threading.get_ident() != rehearsing:
            return launch(kernel, grid)  # type: ignore[no-any-return]
        return functools.partial(kernel.warmup, grid=grid)

    KernelInterface.__getitem__ = compiled_only
    try:
        yield
    finally:
        KernelInterface.__getitem__ = launch
