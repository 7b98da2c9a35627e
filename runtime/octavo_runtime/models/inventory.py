"""What the cache holds: listing and removing.

Hub models live in huggingface_hub's cache, which other tools share; they are left to `hf cache`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import cache_root
from octavo_runtime.models.catalogue import CATALOGUE, find_entry
from octavo_runtime.models.source import catalogue_key, remote_key


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that is in the cache, or could be. `path` is where it is or would be."""

    name: str
    path: Path
    num_bytes: int
    about: str
    is_present: bool


def catalogue_models(root: Path | None = None) -> list[ModelRow]:
    """Every model of the catalogue."""
    folder = (root or cache_root()) / "models"
    return [
        ModelRow(
            entry.name,
            path := folder / catalogue_key(entry),
            entry.model_bytes,
            f"{entry.description}, {entry.licence}",
            path.is_dir(),
        )
        for entry in CATALOGUE
    ]


def cached_models(root: Path | None = None) -> list[ModelRow]:
    """Every complete model folder in Octavo's cache, by name."""
    folder = (root or cache_root()) / "models"
    if not folder.is_dir():
        return []
    return [
        ModelRow(path.name, path, _num_bytes(path), "fetched or converted", True)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


def remove_cached(name: str, root: Path | None = None) -> int:
    """Deletes a model from the cache; returns the bytes that it took. Raises `ConfigError`."""
    root = root or cache_root()
    known = {row.name: row for row in cached_models(root)}
    row = known.get(_key(name))
    if row is None:
        raise ConfigError(
            f"{name} is not in {root / 'models'}; there is: {', '.join(known) or 'nothing'}"
        )
    # Renamed first: nobody finds half a model while its files go.
    doomed = row.path.with_name(f".partial-{row.path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    row.path.rename(doomed)
    shutil.rmtree(doomed)
    return row.num_bytes


def _key(name: str) -> str:
    if (entry := find_entry(name)) is not None:
        return catalogue_key(entry)
    return remote_key(name) if "://" in name else name


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
