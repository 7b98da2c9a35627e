"""Has a request answered by the router's own application, without a socket."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_protocol.asgi import App, Message


@dataclass(slots=True)
class Answer:
    """headers: by their names in small letters."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


async def post(
    app: App,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    state: Mapping[str, object],
) -> Answer:
    """The whole answer of `app` to a POST of JSON. Cancelled: as a client that leaves.

    state: of the ASGI scope, which no client can set.
    """
    answer = Answer()
    pieces: list[bytes] = []
    is_sent = False

    async def receive() -> Message:
        nonlocal is_sent
        if is_sent:
            return await _never()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in message["headers"]
            }
        elif message["type"] == "http.response.body":
            pieces.append(message.get("body", b""))

    await app(_scope(path, headers, state), receive, send)
    answer.body = b"".join(pieces)
    return answer


def _scope(path: str, headers: Mapping[str, str], state: Mapping[str, object]) -> dict[str, Any]:
    given = {"content-type": "application/json", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
        "client": None,
        "server": None,
        "state": dict(state),
    }


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")
