"""Settings of the C library's allocator that suit large, short-lived activations.

By default glibc hands freed memory back to the kernel, which zeroes it again page by page on the
next step: with chunks of 1,024 tokens that is up to a tenth of a step. Keeping it costs resident
memory up to the largest step.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# Parameter numbers of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 1
_MMAP_BYTES = 2**30


@functools.cache
def tune_allocator() -> str:
    """Keep freed activations in the process; returns what is active. Safe to call again.

    Only glibc is changed. A preloaded allocator, or MALLOC_ and GLIBC_TUNABLES settings of the
    user's, stand.
    """
    if preloaded := os.environ.get("LD_PRELOAD"):
        return f"allocator left as it is: LD_PRELOAD={preloaded}"
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        if os.environ.get(name):
            return f"allocator left as it is: {name}={os.environ[name]}"
    mallopt = _glibc_mallopt()
    if mallopt is None:
        return "allocator left as it is: not glibc"
    # The threshold first: memory above it is mapped and unmapped on every use, whatever the trim
    # threshold.
    if mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES):
        return f"glibc keeps freed memory (mmap above {_MMAP_BYTES >> 20} MiB)"
    return "glibc refused mallopt; defaults are active"


def trim_allocator() -> None:
    """Hands memory that is free back to the kernel now, in spite of `tune_allocator`."""
    if _glibc_mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def _glibc_mallopt() -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    # musl has mallopt in no version; gnu_get_libc_version tells glibc apart from the rest.
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return None
    function = library.mallopt
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return function
