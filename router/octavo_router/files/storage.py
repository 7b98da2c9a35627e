"""Where the bytes of files lie: a folder, or a bucket (anything that fsspec opens).

A file is there whole or not at all: on a disk it is written beside its place, synced and renamed; a
bucket shows an object only when its upload is complete.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from octavo_protocol.errors import ConfigError, UnavailableError

_PIECE_BYTES = 2**20


class StorageError(UnavailableError):
    """The storage is full or away; what was asked for may work later."""


class FileStorage:
    """Files below one URL, by names that are made here and never come from a request.

    url: a folder, or `s3://bucket/prefix`, `gs://…` and the like with fsspec's package for it.
    options: what fsspec takes beside the URL, such as `{"anon": True}`.
    Methods raise `StorageError`. Raises `ConfigError` for a URL that cannot be used.
    """

    def __init__(self, url: str, **options: Any) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"cannot store files in {url!r}: {error}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)

    async def check(self) -> None:
        """Writes a file and deletes it. Raises `StorageError`."""
        name = f"check-{secrets.token_hex(8)}"
        async with self.writer(name) as writer:
            await writer.write(b"octavo")
        await self.delete(name)

    def writer(self, name: str) -> "FileWriter":
        """Writes the file `name`, which replaces one that is there."""
        return FileWriter(self._fs, f"{self._root}/{name}", is_local=self._is_local)

    async def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start` on; all of them for None. Less where the file ends."""
        data: bytes = await _in_thread(self._read, name, start, size)
        return data

    async def pieces(self, name: str) -> AsyncIterator[bytes]:
        """The file, a megabyte after the other."""
        size = await _in_thread(self._size, name)
        start = 0
        # Buckets refuse a range that begins at the end.
        while start < size and (piece := await self.read(name, start, _PIECE_BYTES)):
            yield piece
            start += len(piece)

    async def delete(self, *names: str) -> None:
        """Deletes files; those that are not there count as deleted."""
        await _in_thread(self._delete, names)

    def _read(self, name: str, start: int, size: int | None) -> bytes:
        end = None if size is None else start + size
        data: bytes = self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)
        return data

    def _size(self, name: str) -> int:
        return int(self._fs.size(f"{self._root}/{name}"))

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{name}")


class FileWriter:
    """An async context manager: the file is there when it ends well, and else nothing is."""

    def __init__(self, fs: Any, path: str, *, is_local: bool) -> None:
        self._fs = fs
        self._path = path
        self._is_local = is_local
        self._temporary = f"{path}.{secrets.token_hex(4)}.part" if is_local else path
        self._file: IO[bytes]
        self.num_bytes = 0

    async def __aenter__(self) -> "FileWriter":
        self._file = await _in_thread(self._open)
        return self

    async def write(self, data: bytes) -> None:
        await _in_thread(self._file.write, data)
        self.num_bytes += len(data)

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await _in_thread(self._discard if kind is not None else self._commit)

    def _open(self) -> IO[bytes]:
        self._fs.makedirs(os.path.dirname(self._path), exist_ok=True)
        file: IO[bytes] = self._fs.open(self._temporary, "wb")
        return file

    def _commit(self) -> None:
        try:
            if self._is_local:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if self._is_local:
                os.replace(self._temporary, self._path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        """Local: closes and removes. A bucket's upload is given up where fsspec can say so.

        Raises nothing: what has led here is to be told.
        """
        with suppress(Exception):
            if self._is_local:
                self._file.close()
                os.unlink(self._temporary)
            elif hasattr(self._file, "discard"):
                self._file.discard()


async def _in_thread(function: Any, *arguments: Any) -> Any:
    """`function` in a thread. Raises `StorageError` for what the storage complains of."""
    try:
        return await asyncio.to_thread(function, *arguments)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError("the storage for files is full", code="storage_full") from error
        raise _unavailable(error) from error
    except Exception as error:  # packages for buckets have errors of their own
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> StorageError:
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        kind = "there is no such file, or no such bucket"
    return StorageError(
        f"the storage for files cannot be used now ({kind})", code="storage_unavailable"
    )
