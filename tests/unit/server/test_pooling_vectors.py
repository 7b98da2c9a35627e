"""Vectors arrive bit for bit, in every number format as torch rounds to it."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

from octavo_runtime.server.pooling.vectors import as_bytes, as_json

_VALUES = np.random.default_rng(0).standard_normal((50, 40)).astype(np.float32)
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def floats(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def reference(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """torch's rounding, as little-endian bytes."""
    converted = torch.from_numpy(values).to(_DTYPES[dtype])
    return converted.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", list(_DTYPES))
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0, 3e-6])
def test_numbers_are_rounded_as_torch_does(dtype: Any, scale: float) -> None:
    values = np.clip(_VALUES * np.float32(scale), -440, 440)

    assert as_bytes(values, dtype, "little") == reference(values, dtype)


@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_ties_zeros_and_nan_are_rounded_as_torch_does(dtype: Any) -> None:
    eighths = np.arange(-256, 257, dtype=np.float32) / 128
    values = np.concatenate([eighths, floats(0.0, -0.0, 448, -448, 2**-9, 2**-10, 2**-17)])

    assert as_bytes(values, dtype, "little") == reference(values, dtype)
    not_a_number = np.frombuffer(as_bytes(floats(np.nan), dtype, "little"), np.uint8)
    assert torch.from_numpy(not_a_number.copy()).view(_DTYPES[dtype]).isnan().all()


def test_what_fp8_cannot_hold_becomes_its_largest_number() -> None:
    values = floats(1e9, -np.inf)

    assert as_bytes(values, "fp8_e4m3", "native") == b"\x7e\xfe"
    assert as_bytes(values, "fp8_e5m2", "native") == b"\x7b\xfb"


@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_big_endian_is_the_bytes_of_each_number_turned_round(dtype: Any) -> None:
    little, big = (as_bytes(_VALUES, dtype, order) for order in ("little", "big"))

    width = len(little) // _VALUES.size
    turned = np.frombuffer(little, np.uint8).reshape(-1, width)[:, ::-1]
    assert big == turned.tobytes()
    assert as_bytes(_VALUES, dtype, "native") == little


@pytest.mark.parametrize("values", [_VALUES, _VALUES[0], _VALUES[0, :1]])
def test_json_numbers_and_base64_are_the_same_bits(values: Any) -> None:
    numbers = json.loads(as_json(values, "float", "float32", "native"))
    text = json.loads(as_json(values, "base64", "float32", "native"))

    assert np.array_equal(np.array(numbers, np.float64), values.astype(np.float64))
    assert base64.b64decode(text) == values.astype("<f4").tobytes()
