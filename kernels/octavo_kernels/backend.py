"""Which implementation runs on CPU: one switch for every operation.

`auto` takes numba kernels where numba is installed and torch otherwise. The environment variable
OCTAVO_CPU_KERNELS sets the start value; `use_cpu_backend` changes it for a block of code.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

VARIABLE = "OCTAVO_CPU_KERNELS"


class KernelError(Exception):
    """Base of what this package raises."""


class CpuBackend(StrEnum):
    NUMBA = "numba"
    TORCH = "torch"
    REFERENCE = "reference"


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None


def _resolve(choice: str) -> CpuBackend:
    if choice == "auto":
        return CpuBackend.NUMBA if _has_numba() else CpuBackend.TORCH
    try:
        backend = CpuBackend(choice)
    except ValueError:
        names = ", ".join(["auto", *CpuBackend])
        raise KernelError(f"{VARIABLE}={choice!r} is none of {names}") from None
    if backend is CpuBackend.NUMBA and not _has_numba():
        raise KernelError(
            f"{VARIABLE}=numba, but numba is not installed: pip install 'octavo[runtime]'"
        )
    return backend


_active = _resolve(os.environ.get(VARIABLE, "auto"))


def cpu_backend() -> CpuBackend:
    return _active


@contextmanager
def use_cpu_backend(choice: str) -> Iterator[CpuBackend]:
    """Process-wide for the length of the block; `choice` is a CpuBackend or "auto"."""
    global _active
    before = _active
    _active = _resolve(choice)
    try:
        yield _active
    finally:
        _active = before
