"""One HTTP client for sources on the web, and reading a file from any byte on."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import httpx

from octavo_protocol.errors import ConfigError
from octavo_runtime.models.remote.files import TransferInterrupted

# A request for these headers, as a context.
Send = Callable[[Mapping[str, str]], AbstractContextManager[httpx.Response]]

_TIMEOUT = httpx.Timeout(30.0, read=60.0)
# Bodies as they are: a compressed one has other bytes than the file.
_PLAIN = {"Accept-Encoding": "identity"}


def http_client() -> httpx.Client:
    """Follows redirects; credentials do not go along to another host. Proxies as usual."""
    # It would log whole URLs, and a query may hold a signature.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return httpx.Client(timeout=_TIMEOUT, follow_redirects=True, headers=_PLAIN)


def version_of(response: httpx.Response) -> str:
    """What differs when the content does, as far as the server says."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def total_bytes(response: httpx.Response) -> int | None:
    """Size of the whole file, from the answer to a request for it or for a part of it."""
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None


def read_from(send: Send, start: int, what: str, version: str) -> Iterator[bytes]:
    """The content from byte `start` on. Servers that send all of it anyway cost only time.

    what: how messages name it. Raises `TransferInterrupted` and `ConfigError` as `RemoteFile.read`.
    """
    try:
        with send({"Range": f"bytes={start}-"} if start else {}) as response:
            check_answer(response, what)
            if version_of(response) != version and version:
                raise ConfigError(f"{what} changed while it was fetched; fetch it again")
            skipped = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else start
            # As it arrives: what waits in a buffer is lost when the connection breaks.
            for chunk in response.iter_raw():
                if skipped < len(chunk):
                    yield chunk[skipped:]
                skipped = max(0, skipped - len(chunk))
    except httpx.TransportError as error:
        raise interrupted(error) from error


def interrupted(error: httpx.TransportError) -> TransferInterrupted:
    return TransferInterrupted(str(error) or type(error).__name__)


def check_answer(response: httpx.Response, what: str, hint: str = "") -> None:
    """Raises unless the answer is the content. hint: where credentials are looked for."""
    status = response.status_code
    if response.is_success:
        return
    if status in (408, 425, 429) or status >= 500:
        raise TransferInterrupted(f"the server answered {status}")
    if status in (401, 403):
        raise ConfigError(f"{what}: the server refuses access ({status}). {hint}".rstrip())
    if status == 404:
        raise ConfigError(f"{what} does not exist")
    raise ConfigError(f"{what}: the server answered {status} {response.reason_phrase}")
