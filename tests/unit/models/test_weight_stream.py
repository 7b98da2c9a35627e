"""Streamed weights are those of the files, in the targets' types, and errors are those of a copy.

Without a GPU the threads copy to host memory; all else is the same.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.loader import stream_weights
from octavo_runtime.models.weight_stream import stored_tensors, stream_tensors


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(300, 16, generator=generator).bfloat16(),
        "norm": torch.randn(16, generator=generator),
        "up": torch.randn(40, 16, generator=generator).half(),
        "one_long_row": torch.randn(1, 5000, generator=generator),
    }


@pytest.fixture
def files(tmp_path: Path, checkpoint: dict[str, Tensor]) -> list[Path]:
    """Two of them, with tensors that nobody wants and metadata."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    parts = dict(list(checkpoint.items())[:2]), dict(list(checkpoint.items())[2:])
    safetensors.torch.save_file(parts[0] | {"unwanted": torch.ones(9)}, first, {"format": "pt"})
    safetensors.torch.save_file(parts[1], second)
    return [first, second]


def empty(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(each, torch.nan) for name, each in tensors.items()}


@pytest.mark.parametrize("part_bytes", [1, 64, 1000, 1 << 20])
def test_weights_arrive_whole_in_parts_of_any_size(
    files: list[Path], checkpoint: dict[str, Tensor], part_bytes: int
) -> None:
    targets = empty(checkpoint)
    stored = {path: [t for t in stored_tensors(path) if t.name in targets] for path in files}

    names = list(stream_tensors(stored, targets, part_bytes=part_bytes))

    assert sorted(names) == sorted(checkpoint)
    for name, tensor in checkpoint.items():
        assert torch.equal(targets[name], tensor)


def test_weights_are_converted_into_rows_of_larger_ones(
    files: list[Path], checkpoint: dict[str, Tensor]
) -> None:
    fused = torch.zeros(342, 16)
    targets = {"embed": fused[1:301], "up": fused[301:341]}

    assert sorted(stream_weights(targets, files)) == ["embed", "up"]

    assert torch.equal(fused[1:301], checkpoint["embed"].float())
    assert torch.equal(fused[301:341], checkpoint["up"].float())
    assert not fused[[0, 341]].any()


def test_nothing_wanted_is_nothing_read(files: list[Path]) -> None:
    assert list(stream_weights({}, files)) == []


def test_another_shape_is_refused_before_anything_is_read(files: list[Path]) -> None:
    targets = {"embed": torch.zeros(300, 16), "up": torch.zeros(16, 40)}

    with pytest.raises(ConfigError, match=r"up has shape \[40, 16\] in the checkpoint, config"):
        stream_weights(targets, files)
    assert not targets["embed"].any()


def test_damaged_file_is_named(files: list[Path], checkpoint: dict[str, Tensor]) -> None:
    files[1].write_bytes(files[1].read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"b\.safetensors is damaged or no safetensors file"):
        stream_weights(empty(checkpoint), files)


def test_file_that_shrinks_meanwhile_is_named(
    files: list[Path], checkpoint: dict[str, Tensor]
) -> None:
    stream = stream_weights(empty(checkpoint), files)
    files[1].write_bytes(files[1].read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"b\.safetensors is damaged .*it ends inside"):
        list(stream)


def test_dtype_that_holds_no_weights_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file({"codes": torch.ones(4, 4, dtype=torch.uint8)}, path)
    with pytest.raises(ConfigError, match=r"codes in .* has dtype U8; weights are BF16, F16"):
        stream_weights({"codes": torch.zeros(4, 4)}, [path])


def test_a_reader_that_gives_up_leaves_no_thread(
    files: list[Path], checkpoint: dict[str, Tensor]
) -> None:
    stored = {path: [t for t in stored_tensors(path) if t.name in checkpoint] for path in files}
    stream = stream_tensors(stored, empty(checkpoint), part_bytes=32)
    next(stream)
    assert any(thread.name.startswith("weights") for thread in threading.enumerate())

    stream.close()

    assert not any(thread.name.startswith("weights") for thread in threading.enumerate())
