"""A cheap HTTP client for closed loops: so many connections, each with one request after the other.

Written on bare sockets, because a client library costs more than the routers that are measured.
"""

import asyncio
import functools
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from benchmarks.instant_replica import CHUNKS, MODEL

_TEXT = "You are a helpful assistant who answers briefly and in plain words. "
_PROMPT = _TEXT * 12
# So many that a loop repeats few: what clients ask is new, and no router has seen it before.
_NUM_BODIES = 1024
_numbers = itertools.count()


@dataclass(slots=True)
class LoadResult:
    """Of the requests that ended: seconds to the first byte of the body, and in all."""

    first_byte: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_done(self) -> int:
        return len(self.total)

    def first_byte_ms(self, percent: int = 50) -> float:
        return percentile_ms(self.first_byte, percent)


def percentile_ms(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] * 1000


def bodies(*, is_stream: bool, chunk_ms: int = 0) -> list[bytes]:
    """Chat requests of some 200 words: one system prompt, and questions that were never asked."""
    more = f',"user":"chunk_ms={chunk_ms}"' if chunk_ms else ""
    flag = "true" if is_stream else "false"
    return [
        (
            f'{{"model":"{MODEL}","stream":{flag},"max_tokens":{CHUNKS}{more},"messages":'
            f'[{{"role":"system","content":"{_PROMPT}"}},'
            f'{{"role":"user","content":"Question number {number}: what is it about?"}}]}}'
        ).encode()
        for number in itertools.islice(_numbers, _NUM_BODIES)
    ]


def request_bytes(url: str, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def closed_loop(
    urls: Sequence[str],
    requests: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float | None = None,
) -> LoadResult:
    """Connections spread over `urls`. seconds: None sends one request on each connection."""
    result = LoadResult()
    started = time.perf_counter()
    until = started + seconds if seconds is not None else 0.0
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    for number in range(concurrency):
        parts = urlsplit(urls[number % len(urls)])
        client = _Client(requests, number, until, result)
        address = parts.hostname or "", parts.port or 80
        await loop.create_connection(functools.partial(_same, client), *address)
        clients.append(client)
    await asyncio.gather(*(client.done for client in clients))
    result.seconds = time.perf_counter() - started
    return result


def _same(client: "_Client") -> "_Client":
    return client


class _Client(asyncio.Protocol):
    """One connection. until: no request begins after it."""

    def __init__(
        self, requests: Sequence[bytes], number: int, until: float, result: LoadResult
    ) -> None:
        self._data = bytearray()
        self._first = 0.0
        self._length: int | None = None
        self.done = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._next = number
        self._until = until
        self._result = result

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"connection lost: {error}")

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._first:
            end = self._data.find(b"\r\n\r\n")
            if end < 0 or len(self._data) == end + 4:
                return
            self._first = time.perf_counter()
            self._read_head(bytes(self._data[:end]).lower(), end + 4)
        if self._length is None:
            is_whole = self._data.endswith(b"\r\n0\r\n\r\n")
        else:
            is_whole = len(self._data) >= self._length
        if is_whole:
            self._take(bytes(self._data))

    def _read_head(self, head: bytes, num_head: int) -> None:
        _, found, value = head.partition(b"\r\ncontent-length:")
        self._length = num_head + int(value.split(b"\r\n")[0]) if found else None

    def _take(self, answer: bytes) -> None:
        """A whole answer: good or bad, then the next."""
        now = time.perf_counter()
        is_stream = b'"stream":true' in self._requests[0]
        num_events = answer.count(b"data: {") if is_stream else 1
        if not answer.startswith(b"HTTP/1.1 200") or (is_stream and num_events != CHUNKS):
            self._end(f"{answer[:200]!r}, {num_events} events")
            return
        self._result.first_byte.append(self._first - self._started)
        self._result.total.append(now - self._started)
        if now < self._until:
            self._send()
        else:
            self._end(None)

    def _send(self) -> None:
        self._data = bytearray()
        self._first = 0.0
        self._length = None
        self._started = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def _end(self, error: str | None) -> None:
        if not self.done.done():
            if error is not None:
                self._result.errors.append(error)
            self.done.set_result(None)
            self._transport.close()
