"""Files and batches of a running platform over HTTP, for `octavo batch`.

Files go up and come down in pieces, so that memory does not grow with them. Programs can use the
official `openai` client.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from octavo.chat_client import make_http_client, said_error, unreachable
from octavo_protocol.errors import ConfigError
from octavo_protocol.openai.answers import ModelList
from octavo_protocol.openai.batches import ENDED, Batch, BatchList
from octavo_protocol.openai.files import FileObject

_FILE_TIMEOUT_S = 600.0


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
                answer = self._ask(
                    "POST",
                    "/v1/files",
                    files={"file": (path.name, file)},
                    data={"purpose": "batch"},
                )
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        return msgspec.json.decode(answer, type=FileObject)

    def create(
        self, file_id: str, *, endpoint: str, window: str, metadata: dict[str, str] | None = None
    ) -> Batch:
        body = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": window,
            "metadata": metadata,
        }
        return _batch(self._ask("POST", "/v1/batches", json=body))

    def get(self, batch_id: str) -> Batch:
        return _batch(self._ask("GET", f"/v1/batches/{batch_id}"))

    def cancel(self, batch_id: str) -> Batch:
        return _batch(self._ask("POST", f"/v1/batches/{batch_id}/cancel"))

    def newest(self, limit: int) -> list[Batch]:
        answer = self._ask("GET", "/v1/batches", params={"limit": limit})
        return msgspec.json.decode(answer, type=BatchList).data

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


def _batch(answer: bytes) -> Batch:
    return msgspec.json.decode(answer, type=Batch)
