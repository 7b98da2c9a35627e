"""Kernels that start while the one before them still runs (programmatic dependent launch, Hopper).

Such a kernel is launched with `launch_pdl`. It allows the next one to start at once
(`gdc_launch_dependents`) and waits for those before it (`gdc_wait`) before it touches anything that
they write, or that they may still read and it writes. Every one of them waits, so that the end of
a kernel tells that all before it have ended too.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def can_overlap(device: torch.device) -> bool:
    """Whether the device can; False under the interpreter."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
