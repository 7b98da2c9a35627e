"""Weights from safetensors into a model, tensor by tensor: nothing is held twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors
import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError

INDEX = "model.safetensors.index.json"
Progress = Callable[[int, int], None]


def load_weights(model: nn.Module, folder: Path, *, progress: Progress | None = None) -> None:
    """Fills every weight of `model` from the folder's safetensors files, then packs the layers.

    progress: called with (tensors loaded, tensors in all).
    Raises `ConfigError` for missing files, missing or misshapen tensors, and damaged files.
    """
    targets = dict(_targets(model))
    total = len(targets)
    for name, tensor in _tensors(folder, set(targets)):
        target = targets.pop(name)
        if target.shape != tensor.shape:
            raise ConfigError(
                f"{name} has shape {list(tensor.shape)} in the checkpoint, config.json asks for "
                f"{list(target.shape)}"
            )
        target.copy_(tensor)
        if progress is not None:
            progress(total - len(targets), total)
    if targets:
        some = ", ".join(sorted(targets)[:3])
        raise ConfigError(f"{folder} lacks {len(targets)} of {total} tensors, among them {some}")
    _pack(model)


def load_dummy_weights(model: nn.Module, seed: int) -> None:
    """Random weights of a trained model's scale, to measure a shape without its checkpoint."""
    generator: torch.Generator | None = None
    for _, target in _targets(model):
        if generator is None:
            generator = torch.Generator(target.device).manual_seed(seed)
        if target.dim() == 1:
            target.fill_(1.0)
        else:
            target.normal_(0.0, target.shape[-1] ** -0.5, generator=generator)
    _pack(model)


def _targets(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        weight_targets = getattr(module, "weight_targets", None)
        if weight_targets is not None:
            parent = path.rpartition(".")[0]
            yield from weight_targets(f"{parent}." if parent else "")


def _pack(model: nn.Module) -> None:
    for module in model.modules():
        pack = getattr(module, "pack", None)
        if pack is not None:
            pack()


def _tensors(folder: Path, wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
    for path in _weight_files(folder):
        try:
            with safetensors.safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                    if name in wanted:
                        yield name, file.get_tensor(name)
        except safetensors.SafetensorError as error:
            raise ConfigError(
                f"{path} is damaged or no safetensors file ({error}); fetch it again"
            ) from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{index} is not a safetensors index: {error!r}") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise ConfigError(f"{index} names a file outside the folder: {outside[0]!r}")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"{folder} lacks {len(missing)} weight files: {', '.join(missing[:3])}"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [p.name for p in folder.glob("*.bin")]
        hint = (
            f"; {pickled[0]} is a pickle, which can run code when it is read: convert it to "
            "safetensors first"
            if pickled
            else ""
        )
        raise ConfigError(f"{folder} has no .safetensors files{hint}")
    return files
