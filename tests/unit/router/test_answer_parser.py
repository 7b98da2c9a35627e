"""HTTP answers out of bytes that are cut anywhere."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_router.upstream.answer_parser import (
    MAX_OVERHEAD_BYTES,
    AnswerParser,
    BrokenAnswerError,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Trace: 1\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """bytes on the wire, and what they mean. can_reuse: None where the connection ends it."""

    wire: bytes
    status: int
    body: bytes
    can_reuse: bool | None = True


CASES = {
    "length": Case(LENGTH % 5 + b"hello", 200, b"hello"),
    "empty": Case(LENGTH % 0, 200, b""),
    "no content": Case(b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "chunked": Case(CHUNKED + b"5\r\nhello\r\n6;x=1\r\n world\r\n0\r\n\r\n", 200, b"hello world"),
    "trailers": Case(CHUNKED + b"1\r\na\r\n0\r\nX-Trace: 2\r\n\r\n", 200, b"a"),
    "until the end": Case(b"HTTP/1.1 200 OK\r\n\r\nhello", 200, b"hello", None),
    "old": Case(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
    "closing": Case(
        b"HTTP/1.1 429 No\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno", 429, b"no", False
    ),
    "interim": Case(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + LENGTH % 2 + b"ok", 200, b"ok"),
    "unasked": Case(LENGTH % 2 + b"okHTTP/1.1 500 No\r\n\r\n", 200, b"ok", False),
    "rubbish after it": Case(LENGTH % 2 + b"ok\0\1\2", 200, b"ok", False),
}


def pieces(wire: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(wire)) for cut in cuts} | {0, len(wire)})
    return [wire[start:end] for start, end in itertools.pairwise(ends)]


def read(parts: list[bytes]) -> tuple[AnswerParser, bytes]:
    parser, body = AnswerParser(), b""
    for part in parts:
        parser.feed(part)
        body += parser.take()
    return parser, body


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(0, 200), max_size=8))
def test_an_answer_is_the_same_wherever_its_bytes_are_cut(name: str, cuts: list[int]) -> None:
    case = CASES[name]
    parser, body = read(pieces(case.wire, cuts))
    if case.can_reuse is None:
        assert not parser.is_whole
        parser.end()
    assert (parser.status, body, parser.is_whole) == (case.status, case.body, True)
    assert parser.can_reuse == bool(case.can_reuse)
    assert parser.num_held == 0


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 400)))
def test_chunks_join_to_the_body(chunks: list[bytes], cuts: list[int]) -> None:
    wire = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks)
    parser, body = read(pieces(wire + b"0\r\n\r\n", cuts))
    assert (body, parser.is_whole, parser.can_reuse) == (b"".join(chunks), True, True)
    assert parser.headers[b"x-trace"] == b"1"


@given(st.data())
def test_an_answer_that_ends_too_early_is_broken(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["length", "chunked", "trailers", "no content", "interim"]))
    wire = CASES[name].wire
    parser, _ = read([wire[: data.draw(st.integers(1, len(wire) - 1))]])
    with pytest.raises(BrokenAnswerError, match="ended before"):
        parser.end()
    assert not parser.can_reuse


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9\r\n",
        CHUNKED + b"zz\r\nab\r\n",
        CHUNKED + b"2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 101 Other\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nxx",
    ],
)
def test_what_is_no_answer_is_broken(wire: bytes) -> None:
    with pytest.raises(BrokenAnswerError, match=r"not HTTP/1\.1"):
        read([wire])


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\n", CHUNKED + b"1\r\na\r\n0\r\n"])
def test_headers_and_trailers_are_bounded(start: bytes) -> None:
    header = b"x: %s\r\n" % (b"y" * 1000)
    parts = [start] + [header] * (MAX_OVERHEAD_BYTES // len(header) + 1)
    with pytest.raises(BrokenAnswerError, match="bytes around the body"):
        read(parts)


def test_a_long_stream_of_small_chunks_is_not_bounded() -> None:
    parser = AnswerParser()
    parser.feed(CHUNKED)
    num_bytes = 0
    while num_bytes < 2 * MAX_OVERHEAD_BYTES:
        parser.feed(b"1\r\na\r\n")
        num_bytes += len(parser.take()) + 5
    assert not parser.is_whole


def test_of_headers_with_one_name_the_first_counts() -> None:
    parser, _ = read([b"HTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\ncontent-length: 0\r\n\r\n"])
    assert parser.headers == {b"a": b"1", b"content-length": b"0"}
