"""A model as one file on a web server: an archive or a GGUF file.

A token in HTTP_TOKEN is sent as `Authorization: Bearer`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from urllib.parse import unquote, urlsplit

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.archive import ARCHIVES, is_archive
from octavo_runtime.models.remote.files import RemoteFile, refuse_user_part, shown
from octavo_runtime.models.remote.http_read import (
    check_answer,
    read_from,
    total_bytes,
    version_of,
)
from octavo_runtime.models.remote.patience import patiently

_HINT = "Put a token that may read it into the environment as HTTP_TOKEN."


def web_file(source: str, client: httpx.Client) -> RemoteFile:
    """The file at `source`. Raises `ConfigError` when it cannot be had or cannot hold a model."""
    refuse_user_part(source, "HTTP_TOKEN")
    name = unquote(urlsplit(source).path).rpartition("/")[2]
    if not (is_archive(name) or name.endswith(".gguf")):
        raise ConfigError(
            f"{shown(source)}: web servers do not list folders, so give one file: a .gguf file or "
            f"an archive ({', '.join(ARCHIVES)})"
        )
    token = os.environ.get("HTTP_TOKEN")
    authorization = {"Authorization": f"Bearer {token}"} if token else {}

    def send(headers: Mapping[str, str]) -> AbstractContextManager[httpx.Response]:
        return client.stream("GET", source, headers={**authorization, **headers})

    def ask() -> tuple[str, int | None]:
        # Signed URLs are often good for GET alone: the first byte instead of HEAD.
        with send({"Range": "bytes=0-0"}) as response:
            check_answer(response, shown(source), _HINT)
            return version_of(response), total_bytes(response)

    def read(start: int) -> Iterator[bytes]:
        return read_from(send, start, shown(source), version)

    version, num_bytes = patiently(ask, shown(source))
    return RemoteFile(name=name, version=version, num_bytes=num_bytes, read=read)
