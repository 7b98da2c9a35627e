"""Models from object stores, web servers and OCI registries, by URL.

    s3://bucket/path   gs://bucket/path     a folder, or one archive or .gguf file
    http://…  https://…                     one archive or .gguf file
    oci://registry/repository:tag           an artifact of files, or of layers with files in them

Each module answers one question: object_store, web and registry, what files a source has;
transfer, how they arrive; archive, what is in a packed one; layout, which of them are the model.
"""

import shutil
from pathlib import Path

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.cache import Progress
from octavo_runtime.models.remote.archive import is_archive, unpack
from octavo_runtime.models.remote.files import RemoteFile, shown
from octavo_runtime.models.remote.http_read import http_client
from octavo_runtime.models.remote.layout import Tree, complete
from octavo_runtime.models.remote.transfer import download

SCHEMES = ("s3", "gs", "http", "https", "oci")
_INCOMING = ".incoming"


def fetch_remote(
    source: str, progress: Progress, folder: Path, *, allow_pickle: bool = False
) -> None:
    """Fetches the model at `source` into `folder`, in Hugging Face layout.

    What an earlier, interrupted call left in `folder` is continued. allow_pickle: fetch pickled
    weights too. Raises `ConfigError`, whose message holds no credentials.
    """
    incoming = folder / _INCOMING
    incoming.mkdir(exist_ok=True)
    _remove_all_but(incoming)
    with http_client() as client:
        files = _list_files(source, client, allow_pickle)
        paths = download(files, incoming, f"downloading {short_name(source)}", progress)
    tree = Tree(folder / ".unpacked")
    for file, path in zip(files, paths, strict=True):
        if is_archive(file.name):
            unpack(path, tree, allow_pickle=allow_pickle)
            path.unlink()
        else:
            tree.take(file.name, path)
    tree.move_model(folder, shown(source))
    incoming.rmdir()
    complete(folder, shown(source), progress)


def _remove_all_but(kept: Path) -> None:
    """What a call that was killed had made of its downloads may be half of something."""
    for path in kept.parent.iterdir():
        if path.is_dir() and path != kept:
            shutil.rmtree(path)
        elif path != kept:
            path.unlink()


def _list_files(source: str, client: httpx.Client, allow_pickle: bool) -> list[RemoteFile]:
    """The files at `source` that a model may need. Raises `ConfigError` if there are none."""
    scheme = source.partition("://")[0]
    if scheme in ("s3", "gs"):
        from octavo_runtime.models.remote.object_store import objects

        files = objects(source, allow_pickle=allow_pickle)
    elif scheme == "oci":
        from octavo_runtime.models.remote.registry import artifact_files

        files = artifact_files(source, client, allow_pickle=allow_pickle)
    else:
        from octavo_runtime.models.remote.web import web_file

        files = [web_file(source, client)]
    if not files:
        raise ConfigError(f"{shown(source)} has no model in it: no config.json, weights or archive")
    return files


def short_name(source: str) -> str:
    """The last part of the source's path, for people."""
    return shown(source).rstrip("/").rpartition("/")[2]
