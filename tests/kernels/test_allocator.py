"""Each case in a process of its own: the settings last as long as the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
from octavo_kernels import tune_allocator
first = tune_allocator()
assert first == tune_allocator()
print(first)
"""

# Faults of repeated 16 MiB buffers: each is mapped and zeroed anew unless the process keeps it.
FAULTS = """
import resource, torch
from octavo_kernels import tune_allocator
tune_allocator()
for _ in range(8):  # until the heap has grown to its final size
    torch.ones(1 << 22)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(1 << 22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_activations_stay_in_the_process() -> None:
    if "glibc keeps" not in run(PROGRAM):
        pytest.skip("not glibc")
    # Of 4 KiB each: touching one buffer for the first time costs 4,096 faults, and mapping all five
    # anew would cost 20,480.
    assert int(run(FAULTS)) < 2 * 4096


def test_settings_of_the_user_stand() -> None:
    assert "MALLOC_TRIM_THRESHOLD_=131072" in run(PROGRAM, MALLOC_TRIM_THRESHOLD_="131072") or (
        not sys.platform.startswith("linux")
    )
