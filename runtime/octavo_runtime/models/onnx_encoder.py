"""The weights of a BERT out of an ONNX export that was quantised to 8 bits, as float32 safetensors.

Only what such an export needs of protobuf and of ONNX is read: initialisers, and the nodes that
multiply with them. Biases and norms kept their names; matrices did not (onnx::MatMul_1525), but the
node that multiplies with one is named after its module. x = (q - zero_point) * scale.

Source: onnx.proto3 and Protocol Buffers' encoding; ONNX operator MatMulInteger.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.safetensors_writer import TensorPlan, write_safetensors

Array = NDArray[Any]
# Field numbers of the messages ModelProto, GraphProto, NodeProto and TensorProto.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_NODE_INPUT, _NODE_NAME, _NODE_OPERATOR = 1, 3, 4
_DIMS, _DATA_TYPE, _FLOATS, _INTEGERS, _TENSOR_NAME, _RAW = 1, 2, 4, 5, 8, 9
_NUMPY: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1")}
_QUANTIZED = "_quantized"
_MODULE = re.compile(r"/(Gemm_)?MatMul_quant$")


def convert_onnx(source: Path, target: Path) -> str:
    """Writes the weights under Hugging Face's names; returns the SHA-256 of `target`.

    Raises `ConfigError` for a file that is no such export.
    """
    try:
        weights = _weights(memoryview(source.read_bytes()))
    except (IndexError, KeyError, ValueError) as error:
        raise ConfigError(f"{source} is not an 8-bit ONNX export of a BERT: {error!r}") from error
    plans = [
        TensorPlan(name, "F32", array.shape, partial(_pieces, array))
        for name, array in weights.items()
    ]
    return write_safetensors(target, plans, advance=lambda num_bytes: None)


def _pieces(array: Array) -> Iterator[bytes]:
    yield np.ascontiguousarray(array, dtype="<f4").tobytes()


def _weights(model: memoryview) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    products: dict[str, str] = {}  # module: the quantised matrix that it multiplies with
    for number, graph in _fields(model):
        if number != _GRAPH:
            continue
        for kind, message in _fields(graph):
            if kind == _INITIALIZER:
                name, array = _tensor(message)
                tensors[name] = array
            elif kind == _NODE:
                products |= _product(message)
    weights = {
        name: array for name, array in tensors.items() if name.endswith((".weight", ".bias"))
    }
    for name in tensors:
        if name.endswith(f"_embeddings.weight{_QUANTIZED}"):
            stem = name.removesuffix(_QUANTIZED)
            weights[stem] = _dequantised(tensors, stem)
    for module, stem in products.items():
        weights[f"{module}.weight"] = _dequantised(tensors, stem).T  # stored [in, out]
    if not products:
        raise ValueError("it has no 8-bit matrix products")
    return weights


def _dequantised(tensors: dict[str, Array], stem: str) -> NDArray[np.float32]:
    values = tensors[stem + _QUANTIZED].astype(np.float32)
    shifted = values - tensors[f"{stem}_zero_point"].astype(np.float32)
    return np.asarray(shifted * tensors[f"{stem}_scale"], dtype=np.float32)


def _product(node: memoryview | int) -> dict[str, str]:
    """{module: matrix} of a node that multiplies with a quantised matrix, else {}."""
    texts: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_NAME: [""], _NODE_OPERATOR: [""]}
    for number, value in _fields(node):
        if number in texts:
            texts[number].append(bytes(value).decode())
    (*_, name), (*_, operator) = texts[_NODE_NAME], texts[_NODE_OPERATOR]
    if operator != "MatMulInteger":
        return {}
    module = _MODULE.sub("", name).strip("/").replace("/", ".")
    return {module: texts[_NODE_INPUT][1].removesuffix(_QUANTIZED)}


def _tensor(message: memoryview | int) -> tuple[str, Array]:
    shape: list[int] = []
    name, kind = "", 0
    data: memoryview | None = None
    numbers: list[int] = []
    for number, value in _fields(message):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _TENSOR_NAME:
            name = bytes(value).decode()
        elif number in (_RAW, _FLOATS) and not isinstance(value, int):
            data = value
        elif number == _INTEGERS:
            numbers += [value] if isinstance(value, int) else list(_varints(value))
    if kind not in _NUMPY:
        return name, np.empty(0)  # shapes and other constants of the graph
    if data is None:
        return name, np.array(numbers).astype(_NUMPY[kind]).reshape(shape)
    return name, np.frombuffer(data, dtype=_NUMPY[kind]).reshape(shape)


def _fields(message: memoryview | int) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, value) in order: an int, or the bytes of anything that is not a varint."""
    if isinstance(message, int):
        raise ValueError("a number where a message was expected")
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, message[at : at + size]
        at += size


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, place behind it)."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
