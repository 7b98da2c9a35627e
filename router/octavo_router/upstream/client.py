"""HTTP/1.1 to replicas, on connections that are kept for the next request.

    with await client.send("POST", "http://10.0.0.1:8000", "/v1/completions", body=…) as answer:
        while data := await answer.read_some():
            ...

Leaving the block before the end of the answer closes its connection, which ends the replica's work.
No request is ever sent twice: a kept connection is looked at before it is used, because the replica
may have closed it; what fails after that is for the caller, who has other replicas.

General clients do more for each request than the router needs: docs/benchmarks.md.
"""

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from urllib.parse import urlsplit

from octavo_router.upstream.answer_parser import AnswerParser
from octavo_router.upstream.connection import Connection

# Less than servers keep theirs: replicas 75 s. Looked at as often, so that it may be twice as long.
_KEEP_S = 30.0
_MAX_KEPT = 1024  # of one replica


class Answer:
    """What a replica answers: status and headers (by name in small letters) are there, the body
    comes. A context manager: its end is that of the answer.
    """

    def __init__(
        self, parser: AnswerParser, connection: Connection, done: Callable[[Connection], None]
    ) -> None:
        self.status = parser.status
        self.headers = parser.headers
        self._parser = parser
        self._connection = connection
        self._done = done
        self._rest: bytes | None = None

    @property
    def media_type(self) -> bytes:
        """Without its parameters; empty where none is named."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    async def read_some(self) -> bytes:
        """Of the body what has come, at least a byte; nothing at its end.

        Raises `OSError` where the connection breaks or is silent for too long.
        """
        parser = self._parser
        while not parser.num_held:
            if parser.is_whole:
                return b""
            await self._connection.wait()
        return parser.take()

    async def read(self) -> bytes:
        """The rest of the body; again the same at the next call. Raises as `read_some` does."""
        if self._rest is None:
            pieces = []
            while data := await self.read_some():
                pieces.append(data)
            self._rest = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._rest

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done(self._connection)


class _Origin:
    """A replica's address. host: as the header has it. prefix: of all paths. kept: connections that
    wait for a request, the oldest first.
    """

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it must begin with http:// or https:// and name a host")
        self.base_url = base_url
        self.is_tls = parts.scheme == "https"
        self.address = parts.hostname, parts.port or (443 if self.is_tls else 80)
        self.host = parts.netloc.rpartition("@")[2]
        self.prefix = parts.path.rstrip("/")
        self.kept: deque[Connection] = deque()

    def take(self) -> Connection | None:
        """Of the connections that can be used again the one that was used last."""
        while self.kept:
            connection = self.kept.pop()
            if connection.is_quiet:
                return connection
            connection.close()
        return None

    def close_unused(self, since: float) -> None:
        """Closes the connections that nobody has used since then."""
        while self.kept and self.kept[0].kept_at < since:
            self.kept.popleft().close()


class UpstreamClient:
    """Belongs to one event loop.

    connect_s: for a new connection, with TLS. read_s: the longest silence of a replica, not the
    longest answer. headers: sent where a request brings none of that name.
    """

    def __init__(
        self, *, connect_s: float, read_s: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self._connect_s = connect_s
        self._read_s = read_s
        self._headers = dict(headers or {})
        self._loop = asyncio.get_running_loop()
        self._origins: dict[str, _Origin] = {}
        self._busy: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def num_busy(self) -> int:
        """Connections with a request under way."""
        return len(self._busy)

    @property
    def num_kept(self) -> int:
        """Connections that wait for one."""
        return sum(len(origin.kept) for origin in self._origins.values())

    async def send(
        self,
        method: str,
        base_url: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """The answer, as soon as its headers are there. headers: their names in small letters.

        Raises `OSError` where none comes: no connection, no HTTP, or silence.
        """
        origin = self._origin(base_url)
        head = _head(method, origin, path, {**self._headers, **(headers or {})}, len(body))
        connection = origin.take() or await self._connect(origin)
        self._busy.add(connection)
        done = functools.partial(self._done, origin)
        try:
            parser = connection.begin(head, body)
            while not parser.is_headed:
                await connection.wait()
        except BaseException:
            done(connection)
            raise
        return Answer(parser, connection, done)

    def close(self) -> None:
        """Ends every connection, and with it what is under way."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for origin in self._origins.values():
            self._busy.update(origin.kept)
        self._origins.clear()
        for connection in self._busy:
            connection.close()
        self._busy.clear()

    def _origin(self, base_url: str) -> _Origin:
        origin = self._origins.get(base_url)
        if origin is None:
            try:
                origin = self._origins[base_url] = _Origin(base_url)
            except ValueError as error:
                raise OSError(f"{base_url!r} is no address of a replica: {error}") from error
        return origin

    async def _connect(self, origin: _Origin) -> Connection:
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._read_s),
                    *origin.address,
                    ssl=_tls() if origin.is_tls else None,
                )
        except UnicodeError as error:  # of the host's name
            raise OSError(f"{origin.base_url!r} is no address of a replica: {error}") from error
        return connection

    def _done(self, origin: _Origin, connection: Connection) -> None:
        """An answer was read, or is given up."""
        self._busy.discard(connection)
        is_known = self._origins.setdefault(origin.base_url, origin) is origin
        if not is_known or not connection.can_be_kept or len(origin.kept) >= _MAX_KEPT:
            connection.close()
            return
        connection.rest()
        origin.kept.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_KEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Forgets connections and addresses that are not used any more."""
        since = self._loop.time() - _KEEP_S
        for base_url, origin in list(self._origins.items()):
            origin.close_unused(since)
            if not origin.kept:
                del self._origins[base_url]
        self._sweeping = None
        if self._origins:
            self._sweeping = self._loop.call_later(_KEEP_S, self._sweep)


def _head(
    method: str, origin: _Origin, path: str, headers: Mapping[str, str], num_body_bytes: int
) -> bytes:
    """Raises `ValueError` for values that would be more than a header."""
    values = "".join(headers.values())
    if "\r" in values or "\n" in values or "\0" in values:
        raise ValueError("a header's value has the end of a line in it")
    lines = [
        f"{method} {origin.prefix}{path} HTTP/1.1",
        f"host: {origin.host}",
        f"content-length: {num_body_bytes}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Checks certificates by the system's authorities, all of which it reads: made when needed."""
    return ssl.create_default_context()
