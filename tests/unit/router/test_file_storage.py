"""Files in a bucket, by a file system that refuses what Google's refuses."""

import secrets
from collections.abc import AsyncIterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from octavo_router.files.storage import FileStorage, StorageError

MIB = 2**20


class HttpError(Exception):
    """As gcsfs has it: no OSError."""


class Bucket(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A range that begins at the end of an object is status 416."""

    protocol = "octavo-bucket"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        if start is not None and start >= self.size(path):
            raise HttpError("416")
        return bytes(super().cat_file(path, start, end, **options))


@pytest.fixture
def storage() -> FileStorage:
    fsspec.register_implementation("octavo-bucket", Bucket, clobber=True)
    return FileStorage(f"octavo-bucket://{secrets.token_hex(4)}")


async def collected(pieces: AsyncIterator[bytes]) -> list[int]:
    return [len(piece) async for piece in pieces]


@pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB + 5])
async def test_a_file_is_read_to_its_end_and_no_further(storage: FileStorage, size: int) -> None:
    async with storage.writer("file") as writer:
        await writer.write(b"x" * size)
    expected = [MIB] * (size // MIB) + [size % MIB] * (size % MIB > 0)
    assert await collected(storage.pieces("file")) == expected


async def test_errors_of_a_bucket_are_the_storage_s(storage: FileStorage) -> None:
    async with storage.writer("file") as writer:
        await writer.write(b"x")
    with pytest.raises(StorageError, match=r"cannot be used now \(HttpError\)"):
        await storage.read("file", 1)
    with pytest.raises(StorageError, match="no such file, or no such bucket"):
        await collected(storage.pieces("none"))


async def test_an_upload_that_cannot_be_given_up_does_not_hide_why_it_was(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: MemoryFile) -> None:
        raise HttpError("501")

    monkeypatch.setattr(MemoryFile, "discard", refuse)
    with pytest.raises(RuntimeError, match="the client left"):
        async with storage.writer("file"):
            raise RuntimeError("the client left")
