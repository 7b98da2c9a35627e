"""From the name that a user gives to a local model folder in Hugging Face layout.

    ./folder  /folder  ~/folder  file:///folder    a local folder, used where it is
    anything.gguf                                  converted once, kept in the cache
    smollm2, its hub name, hf:// before it         the catalogue: fetched from a package registry
    org/name  hf://org/name                        the Hugging Face hub

A relative folder that holds a model goes before catalogue and hub. What is in the folder is left to
`loader.py`.
"""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress, build_once, cache_root, silent
from octavo_runtime.models.catalogue import CATALOGUE, CatalogueEntry, fetch_gguf, find_entry
from octavo_runtime.models.gguf import CONVERTER_VERSION, convert_gguf, converted_bytes
from octavo_runtime.models.hub import fetch_repository, is_repository_name

_Prepare = Callable[[str, Callable[[Progress, Path], None], int], Path]

_LOCAL_PREFIXES = ("/", "./", "../", "~")
_REMOTE_SCHEMES = ("s3", "gs", "oci", "pvc", "http", "https")


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
    prepare = partial(_prepare, name, root, progress or silent, local_only)
    scheme, _, rest = name.partition("://") if "://" in name else ("", "", name)
    if scheme in _REMOTE_SCHEMES:
        raise ConfigError(
            f"{name}: {scheme}:// sources are not supported yet. Copy the model to a local folder "
            "and give its path."
        )
    if scheme not in ("", "file", "hf"):
        raise ConfigError(f"{name}: unknown scheme {scheme}://; known are file:// and hf://")
    if not rest:
        raise ConfigError("the model's name is empty; try `smollm2`")
    if scheme != "hf" and (local := _local_path(scheme, name)) is not None:
        return _local_model(local, prepare)
    if (entry := find_entry(rest)) is not None:
        _refuse_revision(entry, revision)
        needed = entry.wheel_bytes + entry.gguf_bytes + entry.model_bytes
        return prepare(catalogue_key(entry), partial(_build_from_catalogue, entry), needed)
    if is_repository_name(rest) and (scheme == "hf" or "/" in rest):
        return fetch_repository(rest, revision=revision, local_only=local_only)
    raise ConfigError(
        f"there is no model {name!r}: not a folder or .gguf file in {Path.cwd()}, not in the "
        f"catalogue ({', '.join(e.name for e in CATALOGUE)}), and hub models are written "
        "`org/name` or `hf://name`"
    )


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


def _prepare(
    name: str,
    root: Path,
    progress: Progress,
    local_only: bool,
    key: str,
    build: Callable[[Progress, Path], None],
    needed_bytes: int,
) -> Path:
    if local_only and not (root / "models" / key).is_dir():
        raise ConfigError(f"{name} is not in {root}; run `octavo models pull {name}`")
    return build_once(
        root, key, partial(build, progress), needed_bytes=needed_bytes, progress=progress
    )


def _local_model(path: Path, prepare: _Prepare) -> Path:
    path = path.absolute()
    if path.is_file() and path.suffix == ".gguf":
        path = path.resolve()
        return prepare(_file_key(path), partial(_build_from_file, path), converted_bytes(path))
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


def _refuse_revision(entry: CatalogueEntry, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"{entry.name} comes from {entry.package} {entry.version} and has no revisions; leave "
            f"revision out (it is {revision!r})"
        )


def _build_from_catalogue(entry: CatalogueEntry, progress: Progress, folder: Path) -> None:
    source = fetch_gguf(entry, folder, progress=progress)
    found = convert_gguf(source, folder, progress=progress)
    source.unlink()
    if found != entry.weights_sha256:
        raise ConfigError(
            f"the converted weights of {entry.name} have the SHA-256 {found}, expected "
            f"{entry.weights_sha256}; please report this with your versions of numpy and gguf"
        )
