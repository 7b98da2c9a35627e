"""Files and batches of a running platform over HTTP, for `octavo batch`.

Files go up and come down in pieces, so that memory does not grow with them. Programs can use the
official `openai` client.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import msgspec

from octavo.chat_client import make_http_client, said_error, unreachable
from octavo_protocol.errors import ConfigError
from octavo_protocol.openai.answers import ModelList
from octavo_protocol.openai.batches import ENDED, Batch, BatchList
from octavo_protocol.openai.files import FileList, FileObject

_FILE_TIMEOUT_S = 600.0
_Page = TypeVar("_Page", BatchList, FileList)


class Readable(Protocol):
    """What an upload asks of a file."""

    def read(self, size: int = -1, /) -> bytes: ...


class BatchClient:
    """The server at `base_url` (without /v1). Methods raise `OctavoError`."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Raises `ConfigError` for what is no address or cannot be a key."""
        self.base_url = base_url
        self._http = make_http_client(
            base_url, api_key=api_key, timeout_s=_FILE_TIMEOUT_S, transport=transport
        )

    def close(self) -> None:
        self._http.close()

    def models(self) -> dict[str, int | None]:
        """The served models and their longest context in tokens, where it is known."""
        listed = msgspec.json.decode(self._ask("GET", "/v1/models"), type=ModelList)
        return {model.id: model.max_model_len for model in listed.data}

    def upload(self, path: Path) -> FileObject:
        """Stores a file of requests. Raises `ConfigError` where it cannot be read."""
        try:
            with path.open("rb") as file:
                return self.upload_stream(path.name, file)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error

    def upload_stream(
        self, name: str, stream: Readable, *, lifetime_s: int | None = None
    ) -> FileObject:
        """Stores what `stream` gives as the file `name`. lifetime_s: None: until it is deleted."""
        fields = {"purpose": "batch"}
        if lifetime_s is not None:
            fields |= {
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": str(lifetime_s),
            }
        answer = self._ask("POST", "/v1/files", files={"file": (name, stream)}, data=fields)
        return msgspec.json.decode(answer, type=FileObject)

    def create(
        self,
        file_id: str,
        *,
        endpoint: str,
        window: str,
        metadata: dict[str, str] | None = None,
        key: str | None = None,
        **more: Any,
    ) -> Batch:
        """key: of batches with one, there is one only. more: further fields of the request."""
        body = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": window,
            "metadata": metadata,
            **more,
        }
        headers = {} if key is None else {"Idempotency-Key": key}
        return _batch(self._ask("POST", "/v1/batches", json=body, headers=headers))

    def get(self, batch_id: str) -> Batch:
        return _batch(self._ask("GET", f"/v1/batches/{batch_id}"))

    def cancel(self, batch_id: str) -> Batch:
        return _batch(self._ask("POST", f"/v1/batches/{batch_id}/cancel"))

    def newest(self, limit: int) -> list[Batch]:
        return self._page("/v1/batches", BatchList, limit=limit).data

    def batches(self) -> Iterator[Batch]:
        """All of them, the newest first."""
        return self._all("/v1/batches", BatchList, limit=100)

    def input_files(self) -> Iterator[FileObject]:
        """All files of requests, the newest first."""
        return self._all("/v1/files", FileList, limit=1000, purpose="batch")

    def content(self, file_id: str) -> Iterator[bytes]:
        """The bytes of a file, as they arrive."""
        try:
            with self._http.stream("GET", f"/v1/files/{file_id}/content") as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise said_error(response)
                yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, error) from error

    def _all(self, path: str, kind: type[_Page], **query: Any) -> Iterator[Any]:
        page = self._page(path, kind, **query)
        yield from page.data
        while page.has_more and page.last_id is not None:
            page = self._page(path, kind, **query, after=page.last_id)
            yield from page.data

    def _page(self, path: str, kind: type[_Page], **query: Any) -> _Page:
        return msgspec.json.decode(self._ask("GET", path, params=query), type=kind)

    def _ask(self, method: str, path: str, **fields: Any) -> bytes:
        try:
            response = self._http.request(method, path, **fields)
        except httpx.HTTPError as error:
            raise unreachable(self.base_url, error) from error
        if response.status_code != httpx.codes.OK:
            raise said_error(response)
        return response.content


def has_ended(batch: Batch) -> bool:
    return batch.status in ENDED


def described(batch: Batch) -> str:
    """How far it is, in one line."""
    counts = batch.request_counts
    text = f"{batch.status}: {counts.completed} of {counts.total} answered, {counts.failed} failed"
    if batch.estimated_completion_at is not None:
        left_s = max(0, batch.estimated_completion_at - int(time.time()))
        text += f", about {left_s} s left"
    if batch.errors is not None:
        text += "; " + "; ".join(error.message for error in batch.errors.data)
    return f"{text}; {batch.status_details}" if batch.status_details else text


def _batch(answer: bytes) -> Batch:
    return msgspec.json.decode(answer, type=Batch)
