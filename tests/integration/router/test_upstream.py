"""The router's client for replicas, against servers that do what real ones do, and worse."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.fakes.router_cluster import until

from octavo_router.upstream import BrokenAnswerError, UpstreamClient
from octavo_router.upstream import client as client_module

pytestmark = pytest.mark.integration

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


@dataclass
class Server:
    """What its clients sent. num_connections: that it ever had; num_left: that clients closed."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    num_connections: int = 0
    num_left: int = 0


Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(reply: Reply, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Answers each request on a connection with `reply`."""
    told = Server()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                told.requests.append(head + await reader.readexactly(length))
                await reply(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            told.num_left += 1
        except asyncio.CancelledError:  # the test is over
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    scheme = "http" if context is None else "https"
    told.url = f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}"
    try:
        yield told
    finally:
        server.close()


def scripted(*parts: bytes, closes: bool = False) -> Reply:
    """Writes the parts one by one, then may close the connection."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if closes:
            writer.close()

    return reply


@asynccontextmanager
async def upstream(*, connect_s: float = 5, read_s: float = 5) -> AsyncIterator[UpstreamClient]:
    client = UpstreamClient(connect_s=connect_s, read_s=read_s, headers={"authorization": "k"})
    try:
        yield client
    finally:
        client.close()


async def ask(client: UpstreamClient, server: Server, body: bytes = b"{}") -> bytes:
    with await client.send("POST", server.url + "/base/", "/v1/x", {"a": "b"}, body) as answer:
        return await answer.read()


async def test_a_request_arrives_as_it_was_given_and_connections_are_used_again() -> None:
    async with serving(scripted(OK)) as server, upstream() as client:
        for _ in range(3):
            assert await ask(client, server) == b"ok"
        host = server.url.removeprefix("http://").encode()
        expected = b"POST /base/v1/x HTTP/1.1\r\nhost: %b\r\ncontent-length: 2\r\n" % host
        assert server.requests == [expected + b"authorization: k\r\na: b\r\n\r\n{}"] * 3
        assert (server.num_connections, client.num_busy, client.num_kept) == (1, 0, 1)


async def test_requests_at_once_have_connections_of_their_own() -> None:
    is_open = asyncio.Event()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await is_open.wait()
        writer.write(OK)

    async with serving(reply) as server, upstream() as client:
        asking = [asyncio.create_task(ask(client, server)) for _ in range(20)]
        await until(lambda: len(server.requests) == 20)
        assert client.num_busy == server.num_connections == 20
        is_open.set()
        assert await asyncio.gather(*asking) == [b"ok"] * 20
        assert (client.num_busy, client.num_kept) == (0, 20)


async def test_a_stream_is_given_as_it_comes() -> None:
    turns: asyncio.Queue[bytes] = asyncio.Queue()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        while part := await turns.get():
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        writer.write(b"0\r\n\r\n")

    async with serving(reply) as server, upstream() as client:
        with await client.send("POST", server.url, "/") as answer:
            assert (answer.status, answer.media_type) == (200, b"text/event-stream")
            for part in (b"data: 1\n\n", b"data: 2\n\n"):
                turns.put_nowait(part)
                assert await answer.read_some() == part
            turns.put_nowait(b"")
            assert await answer.read_some() == b""
        assert client.num_kept == 1


async def test_a_whole_body_can_be_read_again() -> None:
    async with serving(scripted(OK)) as server, upstream() as client:
        with await client.send("POST", server.url, "/") as answer:
            assert [await answer.read(), await answer.read()] == [b"ok", b"ok"]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"HTTP/1.1 200 OK\r\ncontent-le"],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n", b"half"],
        [CHUNKED, b"5\r\nhello\r\n"],
        [CHUNKED, b"5\r\nhello\r\nzz\r\n"],
        [b"220 smtp.example.org ESMTP\r\n"],
        [b"HTTP/1.1 200 OK\r\n", b"x: %s\r\n" % (b"y" * 70_000)],
    ],
)
async def test_an_answer_that_breaks_is_an_error_and_its_connection_is_closed(
    parts: list[bytes],
) -> None:
    async with serving(scripted(*parts, closes=True)) as server, upstream() as client:
        with pytest.raises(BrokenAnswerError):
            await ask(client, server)
        assert (client.num_busy, client.num_kept, len(server.requests)) == (0, 0, 1)


async def test_what_came_before_a_break_is_given_first() -> None:
    broken = scripted(CHUNKED + b"5\r\nhello\r\n", b"zz\r\n")
    async with serving(broken) as server, upstream() as client:
        with await client.send("POST", server.url, "/") as answer:
            assert await answer.read_some() == b"hello"
            with pytest.raises(BrokenAnswerError):
                await answer.read_some()


@pytest.mark.parametrize("is_begun", [False, True])
async def test_a_reader_that_is_cancelled_ends_the_connection(is_begun: bool) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((CHUNKED + b"1\r\na\r\n") * is_begun)

    async with serving(reply) as server, upstream() as client:
        asking = asyncio.create_task(ask(client, server))
        await until(lambda: len(server.requests) == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (client.num_busy, client.num_kept) == (0, 0)
        await until(lambda: server.num_left == 1)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED + b"1\r\na\r\n"])
async def test_silence_is_bounded(start: bytes) -> None:
    async with serving(scripted(start)) as server, upstream(read_s=0.05) as client:
        with pytest.raises(TimeoutError, match=r"nothing came for 0\.05 s"):
            await ask(client, server)
        await until(lambda: server.num_left == 1)


async def test_an_answer_that_takes_long_but_is_never_silent_is_not_cut_off() -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(7):
            writer.write(b"1\r\na\r\n")
            await asyncio.sleep(0.1)
        writer.write(b"0\r\n\r\n")

    async with serving(reply) as server, upstream(read_s=0.5) as client:
        assert await ask(client, server) == b"a" * 7


async def test_a_kept_connection_that_the_server_closed_is_not_used() -> None:
    """Also where the event loop has not had the time to notice that it is closed."""
    has_closed = threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65536).endswith(b"{}"):
                    pass
                connection.sendall(OK)
            has_closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        async with upstream() as client:
            for _ in range(3):
                assert await ask(client, server) == b"ok"
                assert has_closed.wait(5)  # the loop stands still meanwhile
                has_closed.clear()
        thread.join(5)
        assert not thread.is_alive()


async def test_a_connection_on_which_nobody_asked_for_more_is_not_used_again() -> None:
    async with serving(scripted(OK + OK)) as server, upstream() as client:
        for _ in range(2):
            assert await ask(client, server) == b"ok"
        assert (server.num_connections, client.num_kept) == (2, 0)


async def test_connections_at_rest_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_KEEP_S", 0.02)
    async with serving(scripted(OK)) as server, upstream() as client:
        await ask(client, server)
        await until(lambda: server.num_left == 1)
        assert client.num_kept == 0


async def test_a_slow_reader_holds_the_server_back() -> None:
    num_written = 0

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_written
        writer.write(CHUNKED)
        for _ in range(256):
            writer.write(b"10000\r\n%b\r\n" % (b"x" * 65536))
            await writer.drain()
            num_written += 65536
        writer.write(b"0\r\n\r\n")

    async with serving(reply) as server, upstream() as client:
        with await client.send("POST", server.url, "/") as answer:
            before = -1
            while before != num_written:
                before = num_written
                await asyncio.sleep(0.05)
            assert num_written < 256 * 65536
            assert len(await answer.read()) == 256 * 65536
        assert client.num_kept == 1


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 20_000
    async with serving(scripted(OK)) as server, upstream() as client:
        assert await ask(client, server, body) == b"ok"
        assert server.requests[0].endswith(b"\r\n\r\n" + body)


async def test_closing_the_client_breaks_what_is_under_way() -> None:
    ends_with_connection = scripted(b"HTTP/1.1 200 OK\r\n\r\n", b"part")
    async with serving(ends_with_connection) as server, upstream() as client:
        with await client.send("POST", server.url, "/") as answer:
            assert await answer.read_some() == b"part"
            reading = asyncio.create_task(answer.read_some())
            await asyncio.sleep(0)
            client.close()
            with pytest.raises(BrokenAnswerError, match="on this side"):
                await reading


async def test_nobody_who_listens_is_an_error() -> None:
    async with serving(scripted(OK)) as server:
        pass
    async with upstream() as client:
        with pytest.raises(OSError, match=r"."):
            await ask(client, server)


@pytest.mark.parametrize(
    "url", ["ftp://replica", "replica:80", "http://", "http://a:99999", f"http://{'a' * 70}:80"]
)
async def test_what_is_no_address_is_an_error_like_a_broken_connection(url: str) -> None:
    async with upstream() as client:
        with pytest.raises(OSError, match="no address of a replica"):
            await client.send("GET", url, "/")


async def test_a_header_cannot_bring_another_one_along() -> None:
    async with upstream() as client:
        with pytest.raises(ValueError, match="end of a line"):
            await client.send("GET", "http://replica", "/", {"a": "b\r\nc: d"})


async def test_tls_is_spoken_and_certificates_are_checked(
    monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    trusting = ssl.create_default_context(cafile=cert)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with serving(scripted(OK), context) as server, upstream() as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(client, server)
        monkeypatch.setattr(client_module, "_tls", lambda: trusting)
        for _ in range(2):
            assert await ask(client, server) == b"ok"
        assert (server.num_connections, len(server.requests), client.num_kept) == (1, 2, 1)
