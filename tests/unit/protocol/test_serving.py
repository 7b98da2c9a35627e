"""How servers listen: limits of the process, writes that are joined."""

import asyncio
import resource
import socket
from collections.abc import Iterator

import pytest
from tests.fakes.router_cluster import until

from octavo_protocol.asgi import Receive, Scope, Send
from octavo_protocol.serving import DrainingServer, bind, raise_file_limit


@pytest.fixture
def _file_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("_file_limit")
def test_a_server_may_open_as_many_connections_as_its_user() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)


async def test_pieces_of_an_answer_arrive_whole_and_in_order() -> None:
    """Head, chunks and end are joined where they are written together; nothing is lost at close."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(300):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            if number % 7 == 0:
                await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"end"})

    sock = bind("127.0.0.1", 0)
    server = DrainingServer(app)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    await until(lambda: server.started)
    answer = await asyncio.to_thread(_get, sock.getsockname()[1])
    server.should_exit = True
    await serving
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert _unchunked(body) == b"".join(b"%d\n" % number for number in range(300)) + b"end"


def _get(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def _unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)
