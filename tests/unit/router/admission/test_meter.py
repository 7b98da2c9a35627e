"""What is known of an answer from what passes to the client."""

import asyncio
from collections.abc import Sequence

import pytest

from octavo_protocol.asgi import Message
from octavo_protocol.wire_formats import wire_format
from octavo_router.admission.meter import Meter
from octavo_router.stream_trace import StreamTrace
from octavo_router.tenancy.usage import TokenCounts

JSON = b'{"usage":{"prompt_tokens":7,"completion_tokens":3}}'
DONE = b"data: [DONE]\n\n"
HEAD = f"1-{0:032x}"


def pass_on(meter: Meter, status: int, kind: bytes, bodies: Sequence[bytes]) -> None:
    async def run() -> None:
        headers = [(b"content-type", kind)]
        await meter({"type": "http.response.start", "status": status, "headers": headers})
        for body in bodies:
            await meter({"type": "http.response.body", "body": body})

    asyncio.run(run())


def metered(
    stream: StreamTrace, headers: dict[str, str] | None = None
) -> tuple[Meter, list[Message]]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    return Meter(send, stream, headers or {}), sent


def new_stream() -> StreamTrace:
    return StreamTrace(wire_format("/v1/completions"))


@pytest.mark.parametrize(
    ("status", "body", "counts"),
    [
        (200, JSON, TokenCounts(7, 0, 3)),
        (200, b"\x00\x01", TokenCounts(12, 0, 0)),
        (400, b'{"error":{}}', TokenCounts()),
    ],
)
def test_a_whole_answer_tells_its_tokens_an_error_has_none(
    status: int, body: bytes, counts: TokenCounts
) -> None:
    meter, sent = metered(new_stream(), {"x-ratelimit-limit-requests": "3"})
    pass_on(meter, status, b"application/json", [body])
    assert (meter.status, meter.counts(12)) == (status, counts)
    assert (b"x-ratelimit-limit-requests", b"3") in sent[0]["headers"]
    assert sent[1]["body"] == body


def test_a_traced_stream_is_counted_as_far_as_it_came() -> None:
    stream = new_stream()
    meter, _ = metered(stream)
    stream.begin(HEAD)
    stream.feed(b'data: a\n\n:~[0,[1,2],5]\ndata: b\n\n:~[1,[3],5]\ndata: {"usage"')
    pass_on(meter, 200, b"text/event-stream", [b"data: a\n\n", b"data: b\n\n"])
    assert meter.counts(12) == TokenCounts(12, 5, 3)


def test_a_stream_without_a_trace_is_counted_by_what_its_events_tell() -> None:
    stream = new_stream()
    meter, _ = metered(stream)
    stream.begin(None)
    pass_on(
        meter, 200, b"text/event-stream; charset=utf-8", [b"data: a\n\n", b"data: %s\n\n" % JSON]
    )
    assert meter.counts(12) == TokenCounts(7, 0, 3)
    silent, _ = metered(stream)
    pass_on(silent, 200, b"text/event-stream", [b"data: a\n\n", DONE])
    assert silent.counts(12) == TokenCounts(12, 0, 0)


def test_a_stream_that_another_router_began_is_counted_from_here_on() -> None:
    stream = new_stream()
    stream.restore(HEAD, b"[0,[1,2],4],")
    meter, _ = metered(stream)
    stream.feed(b"data: b\n\n:~[0,[3]]\n")
    assert (meter.status, meter.counts(12)) == (200, TokenCounts(0, 0, 1))
