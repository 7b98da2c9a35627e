"""The tensors of a safetensors file in memory, without copies.

    length of the header, 8 bytes | header, JSON | tensors …

The safetensors library copies all of them while no other Python thread can run, so that requests
would wait for an adapter that is being loaded.
"""

import json
import struct
from math import prod
from typing import Any

import torch
from torch import Tensor

_LENGTH = struct.Struct("<Q")
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def stored_tensors(content: Tensor) -> dict[str, Tensor]:
    """Views into `content` by name. content: [num_bytes] uint8.

    Raises ValueError, with what is wrong, for what is no safetensors file of floating-point
    tensors.
    """
    raw = content.numpy().data
    if len(raw) < _LENGTH.size:
        raise ValueError("it is too short for a header")
    (length,) = _LENGTH.unpack(raw[: _LENGTH.size])
    first = _LENGTH.size + length
    if first > len(raw):
        raise ValueError(f"its header should have {length} bytes; the file has {len(raw)}")
    header = json.loads(bytes(raw[_LENGTH.size : first]))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    data = content[first:]
    return {name: _view(name, entry, data) for name, entry in header.items()}


def _view(name: str, entry: Any, data: Tensor) -> Tensor:
    try:
        dtype, shape = _DTYPES.get(entry["dtype"]), entry["shape"]
        begin, end = entry["data_offsets"]
        num_values = prod(shape)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the header's entry of {name} is wrong: {error!r}") from error
    if dtype is None:
        raise ValueError(f"{name} has dtype {entry['dtype']}; it must be {', '.join(_DTYPES)}")
    numbers = [begin, end, *shape]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"the header's entry of {name} has no sizes: {entry!r}")
    if end > len(data) or end - begin != num_values * dtype.itemsize:
        raise ValueError(f"{name} of shape {shape} is to lie at bytes {begin} to {end}")
    stored = data[begin:end]
    if stored.storage_offset() % dtype.itemsize:
        stored = stored.clone()
    return stored.view(dtype).view(shape)
