"""What files there are, in Redis: a record per file, and per owner an index by time."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import cast

import msgspec
import redis.asyncio

from octavo_protocol.errors import NotFoundError
from octavo_protocol.keys import FILES_EXPIRING, file_index_key, file_key
from octavo_protocol.openai.files import FileObject
from octavo_router.files.paging import Page, page_of
from octavo_router.files.storage import FileStorage

_SWEPT = 1000  # expired files that are deleted at a time


class _Record(msgspec.Struct):
    owner: str
    file: FileObject


_decoder = msgspec.msgpack.Decoder(_Record)


class FileStore:
    """Files of owners who do not see each other's.

    A file is first stored and then told of: one that Redis does not know is not there for anybody,
    and what a crash left in the storage is overwritten or stays unseen.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        storage: FileStorage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.storage = storage
        self._redis = client
        self._clock = clock

    @staticmethod
    def new_id() -> str:
        """Not to be guessed."""
        return f"file-{secrets.token_hex(16)}"

    async def add(
        self,
        owner: str,
        file_id: str,
        *,
        filename: str,
        purpose: str,
        num_bytes: int,
        lifetime_s: int | None = None,
    ) -> FileObject:
        """Tells of a file whose bytes are in the storage as `file_id`. Again: nothing changes."""
        now = int(self._clock())
        file = FileObject(
            id=file_id,
            bytes=num_bytes,
            created_at=now,
            filename=filename,
            purpose=purpose,
            expires_at=None if lifetime_s is None else now + lifetime_s,
        )
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(file_key(file_id), msgspec.msgpack.encode(_Record(owner, file)), nx=True)
            pipe.zadd(file_index_key(owner), {file_id: self._clock()}, nx=True)
            if file.expires_at is not None:
                pipe.zadd(FILES_EXPIRING, {file_id: file.expires_at}, nx=True)
            await pipe.execute()
        return file

    async def get(self, owner: str, file_id: str) -> FileObject:
        """Raises `NotFoundError` for one that is not there, has expired or is another owner's."""
        record = await self._read(file_id) if is_id(file_id) else None
        if record is None or record.owner != owner:
            raise NotFoundError(f"there is no file {file_id[:128]!r}", parameter="file_id")
        file = record.file
        if self._has_expired(file):
            raise NotFoundError(f"the file {file_id!r} has expired", parameter="file_id")
        return file

    async def list(
        self, owner: str, page: Page, *, purpose: str | None = None
    ) -> tuple[list[FileObject], bool]:
        """A page, and whether more follow. Raises `NotFoundError` for an `after` that is gone."""
        found: list[FileObject] = []
        async for file_id in page_of(self._redis, file_index_key(owner), page):
            record = await self._read(file_id)
            if record is None or self._has_expired(record.file):
                continue
            if purpose in (None, record.file.purpose):
                found.append(record.file)
                if len(found) > page.limit:
                    break
        return found[: page.limit], len(found) > page.limit

    async def delete(self, owner: str, file_id: str) -> None:
        """Raises `NotFoundError`."""
        await self.get(owner, file_id)
        await self._forget(owner, file_id)

    async def delete_expired(self) -> None:
        """Deletes the files of all owners whose time is over."""
        expired = await self._redis.zrangebyscore(FILES_EXPIRING, 0, self._clock(), 0, _SWEPT)
        for member in cast(list[bytes], expired):
            file_id = member.decode()
            record = await self._read(file_id)
            await self._forget("" if record is None else record.owner, file_id)

    def content(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of a file that is there."""
        return self.storage.pieces(file_id)

    async def _read(self, file_id: str) -> _Record | None:
        raw = cast(bytes | None, await self._redis.get(file_key(file_id)))
        return None if raw is None else _decoder.decode(raw)

    def _has_expired(self, file: FileObject) -> bool:
        return file.expires_at is not None and file.expires_at <= self._clock()

    async def _forget(self, owner: str, file_id: str) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(file_key(file_id))
            pipe.zrem(file_index_key(owner), file_id)
            pipe.zrem(FILES_EXPIRING, file_id)
            await pipe.execute()
        await self.storage.delete(file_id)


def is_id(text: str) -> bool:
    """Ids become names in Redis and in the storage, so they have no other characters."""
    return len(text) <= 128 and text.replace("-", "").replace("_", "").isalnum() and text.isascii()
