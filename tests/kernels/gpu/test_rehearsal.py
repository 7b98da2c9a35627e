"""Kernels are compiled for a GPU that is not there, by a driver that notes loads and launches."""

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

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from octavo_kernels.gpu.rehearsal import rehearsal


loads = []
launches = []


class AbsentGpu:
    launcher_cls = staticmethod(lambda src, metadata: lambda *args: launches.append(args[0]))

    @property
    def utils(self): return self
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_device_properties(self, device): return {"max_shared_mem": 1 << 18}
    def load_binary(self, name, *rest):
        loads.append(name)
        return object(), object(), 0, 0, 1024


@triton.jit
def double(x_ptr, SIZE: tl.constexpr):
    lanes = tl.arange(0, SIZE)
    tl.store(x_ptr + lanes, tl.load(x_ptr + lanes) * 2)


@triton.jit
def broken(x_ptr):
    tl.store(x_ptr, undefined)


driver.set_active(AbsentGpu())
x = torch.ones(64)
with rehearsal():
    for size in (16, 32, 64, 32):
        double[(size,)](x, SIZE=size)
    broken[(1,)](x)
    other = threading.Thread(target=lambda: double[(128,)](x, SIZE=128))
    other.start()
    other.join()
print("in the rehearsal: loaded", loads, "launched", launches)
loads.clear()
double[(32,)](x, SIZE=32)
print("after it: loaded", loads, "launched", launches[1:])
try:
    broken[(1,)](x)
except Exception as error:
    print("broken:", type(error).__name__)
"""


def test_a_rehearsal_compiles_and_loads_each_kernel_of_its_thread_once_and_launches_none(
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
        "in the rehearsal: loaded ['double', 'double', 'double', 'double'] launched [128]",
        "after it: loaded [] launched [32]",
        "broken: CompilationError",
    ]
