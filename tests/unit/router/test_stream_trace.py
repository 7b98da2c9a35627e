"""What is passed on of a traced stream is what the client may see, however its bytes are cut."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.continuation import CONTINUE, ContinuationRequest, TraceEntry
from octavo_protocol.wire_formats import ANTHROPIC, OPENAI, RESPONSES, WireFormat
from octavo_router.stream_trace import StreamTrace

HEAD = f"1700000000-{0:032}"
DONE = b"data: [DONE]\n\n"
TEXT = st.text(alphabet=':~\n[]0,"ab\r', max_size=8)


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"text": text}).encode() + b"\n\n"


def fed(trace: StreamTrace, stream: bytes, cuts: list[int]) -> bytes:
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    return b"".join(trace.feed(piece) for piece in pieces)


def begun() -> StreamTrace:
    trace = StreamTrace(OPENAI)
    trace.begin(HEAD)
    return trace


@given(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5), st.lists(st.integers(0, 999)))
def test_a_whole_stream_passes_without_its_marks(groups: list[list[str]], cuts: list[int]) -> None:
    shown, stream, entries = b"", b"", []
    for number, group in enumerate(groups):
        events = b"".join(map(event, group))
        marks = [TraceEntry(choice, [number]) for choice in range(len(group))]
        shown += events
        stream += events + b"".join(mark.line() for mark in marks)
        entries += marks
    trace = begun()
    passed = fed(trace, stream + DONE, cuts)
    assert trace.is_whole
    assert passed == shown
    assert trace.finish() == DONE
    path, body = trace.continuation("/v1/completions", b'{"stream":true}')
    assert path == CONTINUE + "/v1/completions"
    assert ContinuationRequest.model_validate_json(body) == ContinuationRequest(
        head=HEAD, trace=entries, request={"stream": True}
    )


@given(st.integers(0, 400), st.lists(st.integers(0, 999)))
def test_wherever_a_stream_breaks_what_passed_is_what_the_entries_tell(
    size: int, cuts: list[int]
) -> None:
    events = [event(f"w{number}") for number in range(6)]
    stream = b"".join(e + TraceEntry(0, [n]).line() for n, e in enumerate(events)) + DONE
    size = min(size, len(stream) - 1)
    trace = begun()
    passed = fed(trace, stream[:size], cuts)
    assert not trace.is_whole
    told = ContinuationRequest.model_validate_json(trace.continuation("", b"{}")[1]).trace
    assert passed == b"".join(events[: len(told)])
    assert [entry.token_ids for entry in told] == [[number] for number in range(len(told))]


def test_after_a_break_what_was_held_is_gone_and_the_entries_stay() -> None:
    trace = begun()
    assert trace.feed(event("a") + TraceEntry(0, [1]).line() + event("b")) == event("a")
    trace.begin(HEAD)
    assert trace.num_passed == len(event("a"))
    assert trace.feed(event("b") + TraceEntry(0, [2]).line() + DONE) == event("b")
    assert trace.finish() == DONE
    told = ContinuationRequest.model_validate_json(trace.continuation("", b"{}")[1]).trace
    assert [entry.token_ids for entry in told] == [[1], [2]]


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        (ANTHROPIC, b"event: message_stop\ndata: {}\n\n"),
        (RESPONSES, b"event: response.incomplete\ndata: {}\n\n"),
    ],
)
def test_a_stream_of_named_events_is_whole_with_all_of_its_last_one(
    format: WireFormat, ending: bytes
) -> None:
    trace = StreamTrace(format)
    trace.begin(HEAD)
    assert trace.feed(event("a") + TraceEntry(0, [1]).line() + ending[:-4]) == event("a")
    assert not trace.is_whole
    assert trace.feed(ending[-4:]) == b""
    assert trace.is_whole
    assert trace.finish() == ending


def test_a_mark_without_an_entry_lets_comments_pass() -> None:
    trace = begun()
    assert trace.feed(b": keep-alive\n\n:~\n") == b": keep-alive\n\n"
    assert b'"trace":[]' in trace.continuation("", b"{}")[1]


def test_a_stream_without_a_head_passes_as_it_comes() -> None:
    trace = StreamTrace(OPENAI)
    trace.begin(None)
    assert trace.feed(b"data: [DO") == b"data: [DO"
    assert not trace.is_whole
    assert trace.feed(b"NE]\n\n") == b"NE]\n\n"
    assert trace.is_whole
    assert trace.finish() == b""
