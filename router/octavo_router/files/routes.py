"""/v1/files: upload, list, retrieve, read, delete."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from octavo_protocol.errors import ValidationError
from octavo_protocol.http_app import json_response
from octavo_protocol.openai.batches import page_fields
from octavo_protocol.openai.files import FileDeleted, FileList, FileObject, check_purpose
from octavo_protocol.openapi import ApiRoute, Content, Operation
from octavo_router.files.availability import needs_redis
from octavo_router.files.file_store import FileStore
from octavo_router.files.paging import Page
from octavo_router.files.upload import Upload, receive_upload

_MAX_PAGE = 10_000
_LIFETIME = ("expires_after[anchor]", "expires_after[seconds]")
_SHORTEST_S, _LONGEST_S = 3600, 2_592_000
_PAGING: dict[str, dict[str, Any]] = {
    "after": {"type": "string"},
    "limit": {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
    "order": {"type": "string", "enum": ["asc", "desc"]},
}


class FileRoutes:
    """The endpoints over one `FileStore`. owner_of: whose files a request sees."""

    def __init__(
        self, files: FileStore, owner_of: Callable[[Request], str], *, max_bytes: int
    ) -> None:
        self._files = files
        self._owner_of = owner_of
        self._max_bytes = max_bytes

    async def create(self, request: Request) -> Response:
        file_id = self._files.new_id()
        async with self._files.storage.writer(file_id) as writer:
            upload = await receive_upload(request, writer, max_bytes=self._max_bytes)
            purpose = check_purpose(upload.fields.pop("purpose", ""))
            lifetime_s = _lifetime(upload)
            if writer.num_bytes == 0:
                raise ValidationError("the file is empty", parameter="file")
        file = await self._files.add(
            self._owner_of(request),
            file_id,
            filename=upload.filename or "file",
            purpose=purpose,
            num_bytes=writer.num_bytes,
            lifetime_s=lifetime_s,
        )
        return json_response(file)

    async def list_files(self, request: Request) -> Response:
        page = Page.from_query(request.query_params, default=_MAX_PAGE, largest=_MAX_PAGE)
        files, has_more = await self._files.list(
            self._owner_of(request), page, purpose=request.query_params.get("purpose")
        )
        return json_response(FileList(data=files, has_more=has_more, **page_fields(files)))

    async def retrieve(self, request: Request) -> Response:
        return json_response(await self._file(request))

    async def content(self, request: Request) -> Response:
        """The first piece is read before the status is told: a storage that is away is a 503."""
        file = await self._file(request)
        pieces = self._files.content(file.id)
        first = await anext(pieces, b"")

        async def all_pieces() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return StreamingResponse(
            all_pieces(),
            media_type="application/octet-stream",
            headers={"content-length": str(file.bytes)},
        )

    async def delete(self, request: Request) -> Response:
        file_id = request.path_params["file_id"]
        await self._files.delete(self._owner_of(request), file_id)
        return json_response(FileDeleted(file_id))

    async def _file(self, request: Request) -> FileObject:
        return await self._files.get(self._owner_of(request), request.path_params["file_id"])

    def routes(self) -> list[ApiRoute]:
        one = {200: (Content(FileObject),)}
        return [
            ApiRoute(
                "/v1/files",
                needs_redis(self.create),
                Operation("Upload a file: a form with file and purpose.", answers=one, form=True),
                "POST",
            ),
            ApiRoute(
                "/v1/files",
                needs_redis(self.list_files),
                Operation(
                    "The stored files.",
                    answers={200: (Content(FileList),)},
                    errors=(400, 404),
                    query={**_PAGING, "purpose": {"type": "string"}},
                ),
                "GET",
            ),
            ApiRoute(
                "/v1/files/{file_id}",
                needs_redis(self.retrieve),
                Operation("What a file is.", answers=one, errors=(404,)),
                "GET",
            ),
            ApiRoute(
                "/v1/files/{file_id}/content",
                needs_redis(self.content),
                Operation(
                    "The bytes of a file.",
                    answers={200: (Content(media_type="application/octet-stream"),)},
                    errors=(404,),
                ),
                "GET",
            ),
            ApiRoute(
                "/v1/files/{file_id}",
                needs_redis(self.delete),
                Operation("Delete a file.", answers={200: (Content(FileDeleted),)}, errors=(404,)),
                "DELETE",
            ),
        ]


def _lifetime(upload: Upload) -> int | None:
    """`expires_after` in seconds. Raises `ValidationError`, also for fields that do not exist."""
    anchor, seconds = (upload.fields.pop(name, None) for name in _LIFETIME)
    if upload.fields:
        unknown = next(iter(upload.fields))
        raise ValidationError(
            f"unknown field {unknown[:80]!r}; there are file, purpose and expires_after",
            parameter=unknown[:80],
        )
    if anchor is None and seconds is None:
        return None
    if anchor not in (None, "created_at"):
        raise ValidationError("expires_after[anchor] must be created_at", parameter=_LIFETIME[0])
    text = seconds or ""
    if not (text.isascii() and text.isdecimal() and _SHORTEST_S <= int(text[:9]) <= _LONGEST_S):
        raise ValidationError(
            f"expires_after[seconds] must be from {_SHORTEST_S} to {_LONGEST_S}",
            parameter=_LIFETIME[1],
        )
    return int(text)
