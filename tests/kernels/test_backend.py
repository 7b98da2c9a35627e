"""The switch between implementations, and running without numba."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octavo_kernels import CpuBackend, KernelError, cpu_backend, use_cpu_backend

WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
sys.modules["llvmlite"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else found(name, *rest)
import torch
import octavo_kernels as kernels
assert kernels.cpu_backend() is kernels.CpuBackend.TORCH
assert kernels.rms_norm(torch.ones(2, 64), torch.ones(64), 0.0).tolist() == [[1.0] * 64] * 2
print("ok")
"""


def test_switch_ends_with_its_block() -> None:
    before = cpu_backend()
    with use_cpu_backend("reference") as inside:
        assert inside is cpu_backend() is CpuBackend.REFERENCE
    assert cpu_backend() is before


def test_unknown_backend_is_refused_by_name() -> None:
    with (
        pytest.raises(KernelError, match="'fast' is none of auto, numba, torch, reference"),
        use_cpu_backend("fast"),
    ):
        pass


def test_package_works_without_numba() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "ok\n", done.stderr
