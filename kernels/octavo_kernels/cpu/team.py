"""Runs a compiled kernel on the threads that torch already has.

A second thread pool beside torch's would fight it for the cores, since OpenMP workers spin for a
while after each region. So the kernel goes to the same team, through the entry point that
compilers call for `#pragma omp parallel`. Where that entry point cannot be found the kernel runs
on the calling thread alone; results are the same.

A kernel is a C function of one pointer to int64 arguments. Its threads share the work by taking
numbers from a counter, `arguments[0]`, so it neither knows nor cares how many threads run it.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import torch

_OPENMP_NAMES = ("libgomp", "libiomp5", "libomp")


@functools.cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """`GOMP_parallel(function, data, num_threads, flags)` of the OpenMP that torch has loaded."""
    if not sys.platform.startswith("linux"):
        return None
    loaded: set[str] = set()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith("/") and Path(path).name.startswith(_OPENMP_NAMES):
            loaded.add(path)
    torch_folder = str(Path(torch.__file__).parent)
    for path in sorted(loaded, key=lambda each: not each.startswith(torch_folder)):
        function = getattr(ctypes.CDLL(path), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function  # type: ignore[no-any-return]
    return None


@functools.lru_cache(maxsize=64)
def float_bits(value: float) -> int:
    """The float32 `value` in the low half of an integer argument."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


@functools.lru_cache(maxsize=256)
def _callable(address: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_size_t)(address)


def launch(address: int, arguments: array[int], num_tasks: int) -> None:
    """Run the kernel at `address` until all its threads are done; `arguments[0]` must be 0."""
    data = arguments.buffer_info()[0]
    num_threads = min(torch.get_num_threads(), num_tasks)
    parallel = _parallel() if num_threads > 1 else None
    if parallel is None:
        _callable(address)(data)
    else:
        parallel(address, data, num_threads, 0)
