"""Events are cut out of a stream and numbered, however its bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ValidationError
from octavo_router.resumption import asked
from octavo_router.resumption.events import Batch, EventBuffer

EVENTS = tuple(b"event: e\ndata: {%d}\n\n" % number for number in range(5))
STREAM = b": keep-alive\n\n".join((*EVENTS, b"data: [DO"))


@given(st.lists(st.integers(0, len(STREAM))))
def test_events_come_whole_and_comments_not_at_all(cuts: list[int]) -> None:
    places = [0, *sorted(set(cuts)), len(STREAM)]
    buffer = EventBuffer()
    fed = [buffer.feed(STREAM[a:b]) for a, b in pairwise(places)]
    assert tuple(event for events in fed for event in events) == EVENTS
    assert buffer.finish() == (b"data: [DO",)
    assert buffer.finish() == ()


@given(st.integers(0, 9))
def test_a_batch_shows_what_comes_after_a_number(after: int) -> None:
    batch = Batch(7, EVENTS)
    expected = [b"id: %d\n%b" % (n, e) for n, e in enumerate(EVENTS, 3) if n > after]
    assert batch.first == 3
    assert batch.numbered(after) == b"".join(expected)


def ask(headers: dict[str, str], body: bytes = b"{}", tenant: str = "me") -> tuple[str, str]:
    found = asked(headers, "/v1/completions", body, tenant=tenant, is_stream=True)
    assert found is not None
    return found.id, found.fingerprint


def test_a_stream_is_named_by_key_and_tenant_and_known_by_its_body() -> None:
    mine = ask({"idempotency-key": "k"})
    assert ask({"idempotency-key": "k", "last-event-id": "3"}) == mine
    assert ask({"idempotency-key": "k"}, tenant="you")[0] != mine[0]
    assert ask({"idempotency-key": "kk"}, tenant="m")[0] != ask({"idempotency-key": "k"})[0]
    other = ask({"idempotency-key": "k"}, body=b"[]")
    assert (other[0], other[1] != mine[1]) == (mine[0], True)
    assert "me" not in mine[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"last-event-id": "1"},
        {"idempotency-key": ""},
        {"idempotency-key": "é"},
        {"idempotency-key": "k" * 256},
        {"idempotency-key": "k", "last-event-id": "one"},
        {"idempotency-key": "k", "last-event-id": "9" * 13},
    ],
)
def test_headers_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"Idempotency-Key|Last-Event-ID"):
        asked(headers, "/v1/completions", b"{}", tenant="", is_stream=True)


def test_without_a_key_nothing_is_kept() -> None:
    assert asked({}, "/v1/completions", b"{}", tenant="", is_stream=True) is None
