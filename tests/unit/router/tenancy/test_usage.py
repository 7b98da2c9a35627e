"""Tokens as the answers of every API tell them."""

import pytest

from octavo_router.tenancy.usage import TokenCounts, counts_of_answer, counts_of_events

OPENAI = (
    b'{"choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}}],"usage":'
    b'{"prompt_tokens":12,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":8}}}'
)
RESPONSES = (
    b'{"metadata":{"usage":"x"},"usage":{"input_tokens":12,"output_tokens":5,'
    b'"input_tokens_details":{"cached_tokens":8}}}'
)
ANTHROPIC = b'{"usage":{"input_tokens":4,"output_tokens":5,"cache_read_input_tokens":8}}'


@pytest.mark.parametrize("answer", [OPENAI, RESPONSES, ANTHROPIC])
def test_whole_answers_of_every_api_tell_the_same(answer: bytes) -> None:
    assert counts_of_answer(answer) == TokenCounts(prompt=12, cached=8, output=5)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"usage":7}', b'{"usage":null}', b"\xff"])
def test_an_answer_that_tells_nothing_is_no_error(answer: bytes) -> None:
    assert counts_of_answer(answer) is None
    assert counts_of_events(b"data: " + answer + b"\n\n") is None


@pytest.mark.parametrize(
    "events",
    [
        b'data: {"choices":[]}\n\ndata: %s\n\ndata: [DONE]\n\n' % OPENAI,
        b"event: response.completed\n"
        b'data: {"type":"response.completed","response":%s}\n\n' % RESPONSES,
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":4,"output_tokens":0,'
        b'"cache_read_input_tokens":8}}}\n\n'
        b'event: message_delta\ndata: {"usage":{"output_tokens":5}}\n\n',
    ],
)
def test_events_of_every_api_tell_the_same(events: bytes) -> None:
    assert counts_of_events(events) == TokenCounts(prompt=12, cached=8, output=5)
