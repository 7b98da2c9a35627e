"""Compiles a kernel once per machine: numba keeps the machine code for later processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from numba import cfunc, types

_logger = logging.getLogger(__name__)
_SIGNATURE = types.void(types.int64)
# cfunc objects own the machine code; without a reference it would be freed under its callers.
_kept: list[Any] = []


def compile_kernel(kernel: Callable[[Any], None]) -> int:
    """Address of `kernel` compiled as a C function of one pointer.

    Hazard: numba keys its cache on this kernel's file and its closure. The closure must hold plain
    numbers only (objects differ between processes), and a change in `simd.py` needs a change of
    the kernel's file to be seen.
    """
    try:
        compiled = cfunc(_SIGNATURE, cache=True)(kernel)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _logger.warning("no writable folder for compiled kernels; NUMBA_CACHE_DIR can name one")
        compiled = cfunc(_SIGNATURE)(kernel)
    _kept.append(compiled)
    return int(compiled.address)
