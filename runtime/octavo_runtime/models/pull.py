"""A model in a folder of the caller's choice, for whoever mounts it: whole, or marked as not yet.

folder/
├── config.json, model.safetensors, …
├── .octavo-model.json      the marker, written last: which model this is, complete
├── .octavo-partial/        as far as it has come; gone when the marker is there
└── .octavo-lock            held while somebody fetches
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import (
    Progress,
    explained,
    locked,
    require_space,
    silent,
    staged,
    sync,
)
from octavo_runtime.models.hub import fetch_repository
from octavo_runtime.models.remote.files import is_module_folder, is_wanted, shown
from octavo_runtime.models.source import HubModel, Recipe, find_model

_MARKER = ".octavo-model.json"
_PARTIAL = ".octavo-partial"
_LOCK = ".octavo-lock"
_OWN = frozenset({_MARKER, _PARTIAL, _LOCK, "lost+found"})
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Pulled:
    """was_there: complete before, so nothing was fetched."""

    folder: Path
    num_files: int
    num_bytes: int
    was_there: bool

    @property
    def summary(self) -> str:
        """One line for people."""
        verb = "was complete" if self.was_there else "is complete"
        return f"{self.folder} {verb}: {self.num_files} files, {self.num_bytes / 1e6:.1f} MB"


def pull_model(
    name: str,
    folder: Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    progress: Progress = silent,
) -> Pulled:
    """Fetches the model `name` into `folder`; does nothing where it is complete.

    Of several processes that ask at once, one fetches and the others wait. After a failure or a
    kill the next call goes on where the source allows it. allow_pickle: pickled weights too.

    Raises `ConfigError`, also for a folder that holds something else.
    """
    folder = folder.absolute()
    identity = _identity(name, revision)
    with explained(folder):
        if _is_complete(folder, identity):
            return _pulled(folder, was_there=True)
        found = find_model(name, revision=revision, allow_pickle=allow_pickle)
        recipe = found if isinstance(found, Recipe) else _recipe(found, allow_pickle)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / _LOCK, progress):
            if _is_complete(folder, identity):
                return _pulled(folder, was_there=True)
            _fill(folder, recipe, identity, progress)
    return _pulled(folder, was_there=False)


def _fill(folder: Path, recipe: Recipe, identity: dict[str, str], progress: Progress) -> None:
    partial_folder = folder / _PARTIAL
    if not partial_folder.is_dir() and (others := _files(folder)):
        raise ConfigError(
            f"{folder} holds other files, such as {others[0].name}; give an empty folder"
        )
    require_space(folder, recipe.needed_bytes)
    with staged(partial_folder, is_resumable=recipe.is_resumable):
        recipe.build(progress, partial_folder)
        sync(partial_folder)
        for path in sorted(partial_folder.iterdir()):
            path.replace(folder / path.name)
        _mark(folder, identity)


def _identity(name: str, revision: str | None) -> dict[str, str]:
    identity = {"source": shown(name) if "://" in name else name}
    return identity if revision is None else {**identity, "revision": revision}


def _is_complete(folder: Path, identity: dict[str, str]) -> bool:
    """Whether the marker is there. Raises `ConfigError` if it is another model's."""
    try:
        found = json.loads((folder / _MARKER).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return False
    if found != identity:
        raise ConfigError(
            f"{folder} holds {found.get('source')} (revision {found.get('revision', 'none')}); "
            "give another folder"
        )
    return True


def _mark(folder: Path, identity: dict[str, str]) -> None:
    temporary = folder / f"{_MARKER}.new"
    with temporary.open("w") as out:
        json.dump(identity, out)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(folder / _MARKER)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name not in _OWN)


def _pulled(folder: Path, *, was_there: bool) -> Pulled:
    sizes = [path.stat().st_size for path in _files(folder) if path.is_file()]
    return Pulled(folder, len(sizes), sum(sizes), was_there)


def _recipe(found: Path | HubModel, allow_pickle: bool) -> Recipe:
    if isinstance(found, HubModel):
        return Recipe("", partial(_from_hub, found, allow_pickle), 0, is_resumable=True)
    modules = [path for path in found.iterdir() if path.is_dir() and is_module_folder(path.name)]
    paths = [path for place in (found, *modules) for path in place.iterdir() if path.is_file()]
    wanted = [path for path in paths if is_wanted(path.name, allow_pickle=allow_pickle)]
    num_bytes = sum(path.stat().st_size for path in wanted)
    return Recipe("", partial(_from_folder, found, wanted), num_bytes)


def _from_folder(source: Path, files: list[Path], progress: Progress, folder: Path) -> None:
    done, total = 0, sum(path.stat().st_size for path in files)
    for path in files:
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        done += path.stat().st_size
        progress("copying", done, total)


def _from_hub(model: HubModel, allow_pickle: bool, progress: Progress, folder: Path) -> None:
    with _watched(folder, f"downloading {model.name}", progress):
        fetch_repository(
            model.name, revision=model.revision, folder=folder, allow_pickle=allow_pickle
        )
    # The hub client's notes on what it has fetched.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


@contextmanager
def _watched(folder: Path, stage: str, progress: Progress) -> Iterator[None]:
    """Reports the bytes below `folder` from a thread while the body works."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(_POLL_S):
            progress(stage, _num_bytes(folder), None)

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()


def _num_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # renamed meanwhile
    return total
