"""Weights from safetensors into a model; nothing is held twice.

A CPU's are copied from the mapped files, tensor by tensor, a GPU's are streamed to it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.weight_stream import stored_tensors, stream_tensors
from octavo_runtime.parallel.shards import ModelShards, Shard

INDEX = "model.safetensors.index.json"
Progress = Callable[[int, int], None]
FindShard = Callable[[str], Shard | None]


def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    shards: ModelShards | None = None,
    progress: Progress | None = None,
) -> None:
    """Fills every weight of `model` from the folder's safetensors files, then packs the layers.

    shards: the parts of the tensors that are read; None: they are whole. progress: called with
    (tensors loaded, tensors in all).
    A model with a `base_model_prefix` also takes the checkpoint of its body alone, whose names lack
    that prefix.
    Raises `ConfigError` for missing files, missing or misshapen tensors, and damaged files.
    """
    files = _weight_files(folder)
    prefix = getattr(model, "base_model_prefix", "")
    targets = _named_as_in(files, dict(weight_targets(model)), prefix)
    is_on_gpu = any(target.is_cuda for target in targets.values())
    missing = set(targets)
    fill = stream_weights if is_on_gpu else _copy_weights
    for name in fill(targets, files, _shard_finder(shards)):
        missing.discard(name)
        if progress is not None:
            progress(len(targets) - len(missing), len(targets))
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ConfigError(
            f"{folder} lacks {len(missing)} of {len(targets)} tensors, among them {some}"
        )
    _pack(model)


def _shard_finder(shards: ModelShards | None) -> FindShard:
    return (lambda _: None) if shards is None else shards.of_tensor


def stream_weights(
    targets: Mapping[str, Tensor], files: Iterable[Path], find_shard: FindShard = lambda _: None
) -> Iterator[str]:
    """Fills `targets` by threads that read ahead; yields names as they are whole.

    Raises `ConfigError`, before anything is read where the headers show it.
    """
    stored = {}
    for path in files:
        with _opened(path):  # checks that header and length belong together
            found = [each for each in stored_tensors(path) if each.name in targets]
        for tensor in found:
            shard = find_shard(tensor.name)
            _check_shape(tensor.name, tensor.shape, targets[tensor.name], shard)
        stored[path] = [each.part(find_shard(each.name)) for each in found]
    return stream_tensors(stored, targets)


def load_dummy_weights(model: nn.Module, seed: int, shards: ModelShards | None = None) -> None:
    """Random weights of a trained model's scale, to measure a shape without its checkpoint.

    Shards are those of the model that is whole.
    """
    find_shard = _shard_finder(shards)
    generator: torch.Generator | None = None
    for name, target in weight_targets(model):
        if generator is None:
            generator = torch.Generator(target.device).manual_seed(seed)
        if target.dim() == 1:
            target.fill_(1.0)
            continue
        shard = find_shard(name)
        whole = target if shard is None else target.new_empty(shard.whole_shape(target.shape))
        whole.normal_(0.0, whole.shape[-1] ** -0.5, generator=generator)
        if shard is not None:
            target.copy_(whole[shard.index])
    _pack(model)


def weight_targets(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor to fill) for every weight of the model, before it is packed."""
    for path, module in model.named_modules():
        of_module = getattr(module, "weight_targets", None)
        if of_module is not None:
            parent = path.rpartition(".")[0]
            yield from of_module(f"{parent}." if parent else "")


def _named_as_in(
    files: Iterable[Path], targets: dict[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """The targets under the names of a body alone, where the files hold that."""
    if not prefix or any(name.startswith(f"{prefix}.") for name in _stored_names(files)):
        return targets
    return {name.removeprefix(f"{prefix}."): target for name, target in targets.items()}


def _stored_names(files: Iterable[Path]) -> Iterator[str]:
    for path in files:
        with _opened(path) as file:
            yield from file.keys()


def _pack(model: nn.Module) -> None:
    for module in model.modules():
        pack = getattr(module, "pack", None)
        if pack is not None:
            pack()


def _copy_weights(
    targets: Mapping[str, Tensor], files: Iterable[Path], find_shard: FindShard
) -> Iterator[str]:
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # a safe_open is no mapping
                if name in targets:
                    stored, shard = file.get_slice(name), find_shard(name)
                    _check_shape(name, stored.get_shape(), targets[name], shard)
                    targets[name].copy_(
                        file.get_tensor(name) if shard is None else stored[shard.index]
                    )
                    yield name


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{path} is damaged or no safetensors file ({error}); fetch it again"
        ) from error


def _check_shape(name: str, shape: Sequence[int], target: Tensor, shard: Shard | None) -> None:
    wanted = target.shape if shard is None else shard.whole_shape(target.shape)
    if list(wanted) != list(shape):
        raise ConfigError(
            f"{name} has shape {list(shape)} in the checkpoint, config.json asks for {list(wanted)}"
        )


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
