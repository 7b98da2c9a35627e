"""Weights out of 8-bit ONNX exports: names, zero points and scales; damaged files are refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.onnx_encoder import convert_onnx

FLOAT, UINT8, INT8 = 1, 2, 3


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A number as a varint, anything else with its length before it."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, kind: int, shape: list[int], data: bytes) -> bytes:
    dims = b"".join(field(1, size) for size in shape)
    return field(5, dims + field(2, kind) + field(8, name.encode()) + data)


def product(name: str, matrix: str) -> bytes:
    inputs = b"".join(field(1, each.encode()) for each in ("x_quantized", matrix, "x_zero_point"))
    return field(1, inputs + field(3, name.encode()) + field(4, b"MatMulInteger"))


def export() -> bytes:
    """One matrix [2, 3] with a scale for each column, one embedding, one bias."""
    floats = struct.pack
    graph = product("/encoder/layer.0/dense/MatMul_quant", "onnx::MatMul_7_quantized")
    graph += tensor("onnx::MatMul_7_quantized", INT8, [2, 3], field(9, bytes([1, 2, 3, 4, 5, 255])))
    graph += tensor("onnx::MatMul_7_scale", FLOAT, [3], field(9, floats("<3f", 1, 0.5, 2)))
    graph += tensor("onnx::MatMul_7_zero_point", INT8, [], field(5, varint(1)))
    words = "embeddings.word_embeddings.weight"
    graph += tensor(f"{words}_quantized", UINT8, [2, 2], field(9, bytes([0, 128, 255, 7])))
    graph += tensor(f"{words}_scale", FLOAT, [], field(4, floats("<f", 0.25)))
    graph += tensor(f"{words}_zero_point", UINT8, [], field(5, varint(128)))
    graph += tensor("encoder.layer.0.dense.bias", FLOAT, [3], field(9, floats("<3f", 7, 8, 9)))
    graph += tensor("shape", 7, [1], field(9, bytes(8)))
    return field(1, 8) + field(2, b"quantizer") + field(7, graph)


def test_weights_have_hugging_faces_names_and_shapes(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(export())

    convert_onnx(tmp_path / "model.onnx", tmp_path / "out.safetensors")

    weights = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert {name: value.tolist() for name, value in weights.items()} == {
        "encoder.layer.0.dense.weight": [[0, 3], [0.5, 2], [4, -4]],
        "encoder.layer.0.dense.bias": [7, 8, 9],
        "embeddings.word_embeddings.weight": [[-32, 0], [31.75, -30.25]],
    }
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(length=st.integers(0, len(export()) - 1))
def test_a_file_that_ends_early_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "model.onnx").write_bytes(export()[:length])

    with pytest.raises(ConfigError, match="is not an 8-bit ONNX export"):
        convert_onnx(tmp_path / "model.onnx", tmp_path / "out.safetensors")
