"""Weights from safetensors files to a GPU, as fast as files can be read.

Threads read ranges of the files into pinned memory, a few MiB each, and copy them to the device
while others read: no weight is ever whole in host memory.

    file    | part | part | part | …           rows of one tensor each
    thread 1  read ─ copy   read ─ copy
    thread 2    read ─ copy   read ─ copy
"""

import json
import os
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from queue import SimpleQueue

import torch
from torch import Tensor

from octavo_protocol.errors import ConfigError
from octavo_runtime.parallel.shards import Shard

_NUM_THREADS = 8
_PART_BYTES = 8 * 2**20
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `offset` bytes into the file, row by row.

    columns: those of its rows that are wanted; None: all.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    columns: slice | None = None

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    def part(self, shard: Shard | None) -> "StoredTensor":
        """The shard of it; None: all. Of columns, whole rows are read."""
        if shard is None:
            return self
        if shard.dim == 1:
            return replace(self, columns=shard.index[1])
        offset = self.offset + shard.first * self.row_bytes
        return replace(self, shape=(shard.size, *self.shape[1:]), offset=offset)


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a tensor that one thread reads at once, and where they go."""

    path: Path
    fd: int
    tensor: StoredTensor
    offset: int
    target: Tensor


class _Lane:
    """Pinned memory and a stream: what one copy needs for itself."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        self._memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_gpu)
        self._stream = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]

    def carry(self, part: _Part) -> None:
        """Returns when the rows are on the device. Raises `ConfigError`."""
        num_bytes = part.target.shape[0] * part.tensor.row_bytes
        memory = self._memory[:num_bytes]
        _read(part, memory.numpy().data)
        tensor = part.tensor
        rows = memory.view(tensor.dtype).view(len(part.target), *tensor.shape[1:])
        with torch.cuda.stream(self._stream):
            # Another dtype is converted, and columns are picked, on the device, not on the way.
            on_device = rows.to(part.target.device, non_blocking=True)
            if tensor.columns is not None:
                on_device = on_device[:, tensor.columns]
            part.target.copy_(on_device, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()


def stored_tensors(path: Path) -> list[StoredTensor]:
    """What a safetensors file, whose header is sound, holds. Raises `ConfigError` for a dtype that
    is not a number's here.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ConfigError(
                f"{name} in {path} has dtype {entry['dtype']}; weights are {', '.join(_DTYPES)}"
            )
        first = 8 + length + entry["data_offsets"][0]
        tensors.append(StoredTensor(name, dtype, tuple(entry["shape"]), first))
    return sorted(tensors, key=lambda tensor: tensor.offset)


def stream_tensors(
    files: Mapping[Path, Iterable[StoredTensor]],
    targets: Mapping[str, Tensor],
    *,
    part_bytes: int = _PART_BYTES,
    num_threads: int = _NUM_THREADS,
) -> Generator[str, None, None]:
    """Fills `targets`, of one device and of the shapes of the tensors, or of their columns that are
    wanted; yields names as they are whole.

    Raises `ConfigError` for a file that is shorter than its header says.
    """
    with ExitStack() as stack:
        parts: list[_Part] = []
        for path, tensors in files.items():
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            for tensor in tensors:
                parts += _parts(path, fd, tensor, targets[tensor.name], part_bytes)
        if not parts:
            return
        lane_bytes = max(part.target.shape[0] * part.tensor.row_bytes for part in parts)
        lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(min(num_threads, len(parts))):
            lanes.put(_Lane(lane_bytes, parts[0].target.device))

        def carry(part: _Part) -> str:
            lane = lanes.get()
            try:
                lane.carry(part)
            finally:
                lanes.put(lane)
            return part.tensor.name

        pool = ThreadPoolExecutor(num_threads, "weights")
        stack.callback(pool.shutdown, cancel_futures=True)
        last = {part.tensor.name: index for index, part in enumerate(parts)}
        for index, name in enumerate(pool.map(carry, parts)):  # in the order of the parts
            if last[name] == index:
                yield name


def _parts(
    path: Path, fd: int, tensor: StoredTensor, target: Tensor, part_bytes: int
) -> Iterator[_Part]:
    num_rows = max(1, part_bytes // max(1, tensor.row_bytes))
    for first in range(0, tensor.shape[0], num_rows):
        offset = tensor.offset + first * tensor.row_bytes
        yield _Part(path, fd, tensor, offset, target[first : first + num_rows])


def _read(part: _Part, buffer: memoryview) -> None:
    offset = part.offset
    while buffer:
        count = os.preadv(part.fd, [buffer], offset)
        if count == 0:
            raise ConfigError(
                f"{part.path} is damaged or no safetensors file (it ends inside "
                f"{part.tensor.name}); fetch it again"
            )
        buffer, offset = buffer[count:], offset + count
