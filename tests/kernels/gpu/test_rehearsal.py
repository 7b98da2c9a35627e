"""Kernels are compiled for a GPU that is not there; nothing can be launched on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# In a process of its own: that of the tests has Triton's interpreter.
_SCRIPT = """
import threading
import time

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from octavo_kernels.gpu.rehearsal import rehearsal


class AbsentGpu:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0


@triton.jit
def double(x_ptr, SIZE: tl.constexpr):
    lanes = tl.arange(0, SIZE)
    tl.store(x_ptr + lanes, tl.load(x_ptr + lanes) * 2)


@triton.jit
def broken(x_ptr):
    tl.store(x_ptr, undefined)


def raised(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


driver.set_active(AbsentGpu())
x = torch.ones(64)
elsewhere = []
with rehearsal():
    for size in (16, 32, 64, 32):
        double[(1,)](x, SIZE=size)
    broken[(1,)](x)
    other = threading.Thread(target=lambda: elsewhere.append(raised(lambda: double[(1,)](x, 128))))
    other.start()
    other.join()
kernels = double.device_caches[0][0].values()
print("compiled", len([each for each in kernels if "cubin" in each.asm]))
print("of another thread", elsewhere)
print("after", raised(lambda: double[(1,)](x, SIZE=16)))
print("broken", raised(lambda: broken[(1,)](x)))
"""


def test_a_rehearsal_compiles_each_kernel_of_its_thread_once_and_launches_none(
    tmp_path: Path,
) -> None:
    script = tmp_path / "rehearse.py"
    script.write_text(_SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")

    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "compiled 4",
        "of another thread ['AttributeError']",
        "after AttributeError",
        "broken CompilationError",
    ]
