"""Replicas that answer at once and cost next to nothing, so that what is measured is the router.

    python -m benchmarks.instant_replica [--replicas 2] [--redis URL --deployment NAME]

One process, each replica on a port of its own; prints their addresses, one per line, until SIGTERM.
Answers are made beforehand: a whole one, or a stream of `CHUNKS` events, each in a write of its own
(a request may ask for pauses between them: `"user": "chunk_ms=50"`), with the lines of a trace
where the router asks for them. With Redis, the replicas make themselves known as real ones do.
"""

import argparse
import asyncio
import re
import signal
from contextlib import AsyncExitStack
from typing import cast

import msgspec
import uvloop
from tests.fakes.fake_presence import FakePresence, new_record
from tests.fakes.tiny_model import tiny_bundle

from octavo_protocol.continuation import CONTINUE, TRACE_HEADER, TraceEntry
from octavo_protocol.keys import Keys
from octavo_protocol.openai.answers import SSE_DONE, sse
from octavo_protocol.records import ReplicaRecord

CHUNKS = 16
MODEL = "fake"
_WORD = "word "
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TRACED = b"\r\n" + TRACE_HEADER.encode() + b":"
_STREAM = re.compile(rb'"stream": ?true')
_PAUSE = re.compile(rb'"user": ?"chunk_ms=(\d+)"')
_ENVELOPE = {"id": "bench-1", "created": 1, "model": MODEL}


def _chunk(index: int) -> bytes:
    reason = "length" if index == CHUNKS - 1 else None
    choice = {"index": 0, "delta": {"content": _WORD}, "finish_reason": reason}
    return sse({**_ENVELOPE, "object": "chat.completion.chunk", "choices": [choice]})


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answer(body: bytes, media_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
    return head % (media_type, len(body)) + body


def _events(*, is_traced: bool) -> list[bytes]:
    """The writes of one stream, its head with the first."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    if is_traced:
        head += b"%s: 1-%s\r\n" % (TRACE_HEADER.encode(), b"0" * 32)
    marks = [TraceEntry(0, [index]).line() if is_traced else b"" for index in range(CHUNKS)]
    events = [_http_chunk(_chunk(index) + marks[index]) for index in range(CHUNKS)]
    return [head + b"\r\n" + events[0], *events[1:], _http_chunk(SSE_DONE) + b"0\r\n\r\n"]


_WHOLE = _answer(
    msgspec.json.encode(
        {
            **_ENVELOPE,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _WORD * CHUNKS},
                    "finish_reason": "length",
                }
            ],
            "usage": {
                "prompt_tokens": 1,
                "completion_tokens": CHUNKS,
                "total_tokens": CHUNKS + 1,
            },
        }
    )
)
_TEXT = _answer(
    msgspec.json.encode(
        {
            **_ENVELOPE,
            "object": "text_completion",
            "choices": [{"index": 0, "text": _WORD * CHUNKS, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 1,
                "completion_tokens": CHUNKS,
                "total_tokens": CHUNKS + 1,
            },
        }
    )
)
_PLAIN, _WITH_TRACE = _events(is_traced=False), _events(is_traced=True)
_GETS = {
    b"/v1/models": _answer(
        msgspec.json.encode(
            {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 4096}]}
        )
    ),
    b"/metrics": _answer(b"", b"text/plain"),
}


class _Connection(asyncio.Protocol):
    """One kept-alive connection. Enough of HTTP for the routers that are measured."""

    def __init__(self) -> None:
        self._data = b""
        self._pending: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._pending is not None:
            self._pending.cancel()

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, separator, rest = self._data.partition(b"\r\n\r\n")
        if not separator:
            return
        length = _LENGTH.search(head)
        num_body = int(length[1]) if length else 0
        if len(rest) < num_body:
            if b"\r\nexpect: 100-continue" in head.lower() and not rest:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._data = rest[num_body:]
        self._reply(head, rest[:num_body])

    def _reply(self, head: bytes, body: bytes) -> None:
        method, path, *_ = *head.split(b" ", 2), b""
        if method != b"POST":
            self._transport.write(_GETS.get(path) or _answer(b"{}"))
        elif not _STREAM.search(body):
            self._transport.write(_TEXT if path == b"/v1/completions" else _WHOLE)
        else:
            assert not path.startswith(CONTINUE.encode()), "a stream was broken off"
            pause = _PAUSE.search(body)
            events = _WITH_TRACE if _TRACED in head.lower() else _PLAIN
            self._send(events, 0, int(pause[1]) / 1000 if pause else 0.0)

    def _send(self, events: list[bytes], index: int, pause_s: float) -> None:
        self._transport.write(events[index])
        if index + 1 < len(events):
            loop = asyncio.get_running_loop()
            if pause_s:
                self._pending = loop.call_later(pause_s, self._send, events, index + 1, pause_s)
            else:
                self._pending = loop.call_soon(self._send, events, index + 1, pause_s)


async def _serve(num_replicas: int, redis_url: str | None, deployment: str) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    bundle = tiny_bundle()
    _GETS[b"/octavo/tokenizer"] = _answer(msgspec.json.encode(bundle))
    async with AsyncExitStack() as stack:
        for number in range(num_replicas):
            server = await loop.create_server(_Connection, "127.0.0.1", 0, backlog=4096)
            stack.callback(server.close)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            if redis_url is not None:
                record = new_record(f"instant-{number}", url=url, tokenizer_id=bundle.id)
                await _announce(record, redis_url, deployment, stack)
            print(url, flush=True)
        await stop.wait()


async def _announce(
    record: ReplicaRecord, redis_url: str, deployment: str, stack: AsyncExitStack
) -> None:
    presence = FakePresence(redis_url, Keys("default", deployment), lambda: record)
    await presence.start()
    stack.push_async_callback(presence.stop, is_clean=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--deployment", default="default")
    given = parser.parse_args()
    uvloop.run(_serve(given.replicas, given.redis, given.deployment))


if __name__ == "__main__":
    main()
