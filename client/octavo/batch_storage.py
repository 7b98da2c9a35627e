"""Where `octavo batch run` reads requests from and writes results to: URLs of any file system.

http:// and https:// are read as streams; s3:// and gs:// are `bucket_storage`'s; all else is
fsspec's: a path, or what has a package installed. Files are there whole or not at all: on a disk
they are written beside their place, synced and renamed; a bucket shows an object when its upload is
complete.
"""

import glob
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import httpx
from fsspec.implementations.local import LocalFileSystem

from octavo.bucket_storage import SCHEMES, BucketFile
from octavo_protocol.errors import ConfigError, OctavoError

_PIECE_BYTES = 2**20
_LEFTOVER_S = 3600
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_WEB = ("http://", "https://")


def pieces(url: str) -> Iterator[bytes]:
    """The bytes of a file as they arrive. Raises `ConfigError` where it cannot be read."""
    with _complaining("read", url):
        if url.startswith(_WEB):
            yield from _web_pieces(url)
            return
        if url.startswith(SCHEMES):
            yield from BucketFile.at(url).pieces()
            return
        fs, path = _file_system(url)
        with fs.open(path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece


def write(url: str, content: Iterable[bytes]) -> None:
    """Makes `content` the file, in place of one that is there. Several may do so at once.

    Raises `ConfigError`, and what `content` raises; the file is as it was then.
    """
    with _complaining("write", url):
        if url.startswith(SCHEMES):
            BucketFile.at(url).write(content)
            return
        fs, path = _file_system(url)
        if isinstance(fs, LocalFileSystem):
            _write_locally(path, content)
            return
        with fs.transaction, fs.open(path, "wb") as file:
            for piece in content:
                file.write(piece)


def check_writable(url: str) -> None:
    """Writes an empty file beside it and deletes that. Raises `ConfigError`."""
    with _complaining("write", url):
        if url.startswith(SCHEMES):
            BucketFile.at(url).check_writable()
            return
        fs, path = _file_system(url)
        if isinstance(fs, LocalFileSystem):
            if os.path.isdir(path):
                raise ConfigError(f"cannot write {url}: it is a folder; name a file in it")
            os.makedirs(os.path.dirname(path), exist_ok=True)
        probe = _beside(path)
        fs.pipe_file(probe, b"")
        fs.rm_file(probe)


def remove(url: str) -> None:
    """Deletes a file that an earlier run left, if there is one. Raises `ConfigError`."""
    with _complaining("write", url):
        if url.startswith(SCHEMES):
            BucketFile.at(url).remove()
            return
        fs, path = _file_system(url)
        if fs.exists(path):
            fs.rm_file(path)


def _file_system(url: str) -> tuple[Any, str]:
    if url.startswith(_WEB):
        raise ConfigError("an http URL can be read only; write to a path, s3:// or gs://")
    if url.startswith("pvc://"):
        raise ConfigError("pvc:// is for BatchJobs; give the path where the claim is mounted")
    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)


def _web_pieces(url: str) -> Iterator[bytes]:
    with httpx.stream("GET", url, timeout=_TIMEOUT, follow_redirects=True) as response:
        if response.status_code != httpx.codes.OK:
            raise ConfigError(f"cannot read {url}: it answered {response.status_code}")
        yield from response.iter_bytes(_PIECE_BYTES)


def _write_locally(path: str, content: Iterable[bytes]) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _remove_leftovers(path)
    temporary = _beside(path)
    try:
        with open(temporary, "wb") as file:
            for piece in content:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _beside(path: str) -> str:
    """A name that nobody else writes to."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")


def _remove_leftovers(path: str) -> None:
    """Those of runs that were killed while they wrote, long ago."""
    folder, name = os.path.split(path)
    for each in Path(folder).glob(f".{glob.escape(name)}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - each.stat().st_mtime > _LEFTOVER_S:
                each.unlink()


@contextmanager
def _complaining(verb: str, url: str) -> Iterator[None]:
    """Every file system has errors of its own; here they become a `ConfigError`."""
    try:
        yield
    except OctavoError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror
        else:
            text = str(error) or type(error).__name__
        raise ConfigError(f"cannot {verb} {url}: {text}") from error
