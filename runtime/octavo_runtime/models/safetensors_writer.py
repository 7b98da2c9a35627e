"""Writing a safetensors file front to back, without ever holding more than one piece of a tensor.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {dtype, shape, data_offsets}, padded with spaces to a multiple of 8
    data      the tensors one after another

Source: the safetensors format description. Reading is left to the `safetensors` package.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor to write. `pieces` yields its bytes in order; it is called once."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes]]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def write_safetensors(
    path: Path, tensors: Sequence[TensorPlan], *, advance: Callable[[int], None]
) -> str:
    """Writes `tensors` (all of one dtype) in order of name; returns the file's SHA-256.

    advance: called with the number of bytes after each piece. Raises `ValueError` when a tensor
    yields more or fewer bytes than its shape says.
    """
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        header = _header(ordered)
        file.write(header)
        digest.update(header)
        for tensor in ordered:
            written = 0
            for piece in tensor.pieces():
                file.write(piece)
                digest.update(piece)
                written += len(piece)
                advance(len(piece))
            if written != tensor.num_bytes:
                raise ValueError(f"{tensor.name}: {written} bytes, {tensor.num_bytes} expected")
    return digest.hexdigest()


def _header(tensors: Sequence[TensorPlan]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
