"""Small pieces of HTTP serving that the router and every replica do alike. Typed, no framework."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, MutableMapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.errors import (
    AuthenticationError,
    ClientError,
    OctavoError,
    RequestTooLargeError,
    ValidationError,
    envelope,
    error_body,
)
from octavo_protocol.logs import request_id_var
from octavo_protocol.openai import validation_error

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = b"x-request-id"
JSON_TYPES = ("", "application/json")  # media types; "": the client names none
_MAX_DISCARDED_BYTES = 64 * 2**20
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


class ClientGoneError(Exception):
    """The client closed its connection before it had the whole answer."""


def request_id(scope: Scope) -> str:
    """The client's x-request-id where it is safe to repeat, else a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            text = value.decode("latin-1")
            if _SAFE_REQUEST_ID.fullmatch(text):
                return str(text)
    return secrets.token_hex(16)


class RequestIdMiddleware:
    """Gives every request an id: in `scope["state"]["request_id"]`, in logs, in the answer."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        identifier = request_id(scope)
        scope.setdefault("state", {})["request_id"] = identifier
        token = request_id_var.set(identifier)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != REQUEST_ID]
                message["headers"] = [*headers, (REQUEST_ID, identifier.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            request_id_var.reset(token)


async def read_body(
    scope: Scope, receive: Receive, max_bytes: int, *, media_types: Collection[str] = JSON_TYPES
) -> bytes:
    """The whole body. Raises `RequestTooLargeError` for one of more than `max_bytes`, and
    `ValidationError` for one that calls itself something else than one of `media_types`.

    What is too large is not kept, but read on for a while: a connection that is closed on a client
    that still sends would be reset, and the client would never see the answer.
    """
    max_read = max_bytes + _MAX_DISCARDED_BYTES
    for name, value in scope["headers"]:
        if name == b"content-type":
            _check_media_type(value.decode("latin-1"), media_types)
        if name == b"content-length" and value.isdigit() and int(value) > max_read:
            raise too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= max_bytes:
            chunks.append(chunk)
        else:
            chunks.clear()
        is_last = not message.get("more_body", False)
        if size > max_read or (is_last and size > max_bytes):
            raise too_large(max_bytes)
        if is_last:
            return b"".join(chunks)


def parse_body(raw: bytes, kind: type[_M]) -> _M:
    """`raw` as `kind`. Raises `ValidationError` that says what is wrong with it."""
    try:
        data = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ValidationError(f"the body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ValidationError(f"the body is not valid UTF-8: {error}") from error
    except RecursionError as error:
        raise ValidationError("the body is nested too deeply") from error
    return parse_data(data, kind)


def parse_data(data: Any, kind: type[_M]) -> _M:
    """Decoded JSON as `kind`. Raises `ValidationError` that says what is wrong with it."""
    try:
        return kind.model_validate(data)
    except PydanticValidationError as error:
        raise validation_error(error) from error


class Departure:
    """The end of a client's connection, in `scope["extensions"]` by servers that can tell of it:
    to be called costs a request less than a task that waits for the message.
    """

    NAME = "octavo.departure"

    def __init__(self) -> None:
        self.has_come = False
        self._callbacks: set[Callable[[], None]] = set()

    @classmethod
    def of(cls, scope: Scope) -> "Departure | None":
        departure: Departure | None = scope.get("extensions", {}).get(cls.NAME)
        return departure

    def watch(self, callback: Callable[[], None]) -> None:
        """`callback` is called when it comes; not if it has come already."""
        self._callbacks.add(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        self._callbacks.discard(callback)

    def come(self) -> None:
        self.has_come = True
        for callback in list(self._callbacks):
            callback()


async def run_unless_gone(
    receive: Receive, work: Coroutine[Any, Any, _T], departure: Departure | None = None
) -> _T:
    """The result of `work`, which is cancelled when the client leaves: then `ClientGoneError`.

    The body must have been read: the next message can only be the disconnect. departure: to be
    watched in place of messages.
    """
    if departure is not None and departure.has_come:
        work.close()
        raise ClientGoneError
    task = asyncio.current_task()
    assert task is not None
    is_gone = is_over = False

    def leave(_: object = None) -> None:
        nonlocal is_gone
        if not is_over:
            is_gone = True
            task.cancel()

    watcher = None
    if departure is not None:
        departure.watch(leave)
    else:
        watcher = asyncio.ensure_future(_disconnected(receive))
        watcher.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not task.uncancel():
            raise ClientGoneError from None
        raise
    finally:
        is_over = True
        if departure is not None:
            departure.forget(leave)
        if watcher is not None:
            watcher.cancel()


def error_answer(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, body, headers) for any exception. Unexpected ones tell nothing of the inside."""
    if isinstance(error, OctavoError):
        status, body = envelope(error)
        headers = {"retry-after": "1"} if status in (429, 503) else {}
        if isinstance(error, RequestTooLargeError):
            headers["connection"] = "close"  # the rest of the body may not have been read
        if isinstance(error, AuthenticationError):
            headers["www-authenticate"] = "Bearer"
        return status, body, {**headers, **error.headers}
    return 500, error_body("internal error", error_type="internal_error", code=500), {}


def http_error_answer(status: int, method: str, path: str) -> dict[str, Any]:
    """The body for an unknown route or a wrong method."""
    text = {
        404: f"there is no route {path}",
        405: f"{method} is not allowed on {path}",
    }.get(status, "the request cannot be served")
    return error_body(text, error_type=ClientError.error_type, code=status)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_media_type(value: str, expected: Collection[str]) -> None:
    media_type = value.partition(";")[0].strip().lower()
    if media_type not in expected:
        raise ValidationError(
            "the body must be JSON, with the header `Content-Type: application/json`"
        )


def too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"the body is larger than {max_bytes} bytes")
