"""What a router changes in a request arrives as it was meant, beside the unchanged body."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ValidationError
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.openai import CompletionRequest, TokenizeRequest
from octavo_protocol.overrides import (
    MEDIA_TYPE,
    NO_OVERRIDES,
    PREFIX_HEADER,
    PRIORITY_HEADER,
    TOKENS_HEADER,
    PromptTokens,
    RequestOverrides,
    split_overrides,
)
from octavo_protocol.packed_ids import pack

_TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_IDS = st.lists(st.integers(0, 2**32 - 1), max_size=40)
_PREFIXES = st.none() | st.builds(
    SharedPrefix.of,
    _IDS.map(pack),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
_TOKENS = st.none() | st.builds(
    PromptTokens,
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.lists(_IDS.map(pack), min_size=1, max_size=4).map(tuple),
    _PREFIXES,
)


@given(
    overrides=st.builds(
        RequestOverrides,
        model=_TEXTS,
        cache_salt=_TEXTS,
        priority=st.none() | st.integers(-(2**63), 2**63 - 1),
        prompt_tokens=_TOKENS,
    ),
    body=st.binary(max_size=60),
)
def test_what_is_sent_arrives(overrides: RequestOverrides, body: bytes) -> None:
    headers = overrides.headers
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert split_overrides(headers, overrides.framed(body)) == (body, overrides)


def test_without_changes_the_request_is_as_it_came() -> None:
    assert NO_OVERRIDES.headers == {"content-type": "application/json"}
    assert NO_OVERRIDES.framed(b"{}") == b"{}"


def test_a_body_with_tokens_does_not_call_itself_json() -> None:
    tokens = PromptTokens.of("ab", [[1, 2]])
    assert RequestOverrides(prompt_tokens=tokens).headers["content-type"] == MEDIA_TYPE
    assert tokens.prompts(1) == [[1, 2]]


def test_values_replace_those_of_the_body_and_leave_the_rest() -> None:
    request = CompletionRequest(prompt="a", model="alias", cache_salt="own", priority=9)
    changed = RequestOverrides(model="real", cache_salt="tenant", priority=-1).applied_to(request)
    assert (changed.model, changed.cache_salt, changed.priority) == ("real", "tenant", -1)
    request = CompletionRequest(prompt="a", model="m", cache_salt="own", priority=9)
    same = NO_OVERRIDES.applied_to(request)
    assert (same.model, same.cache_salt, same.priority) == ("m", "own", 9)


def test_requests_without_such_fields_take_what_they_have() -> None:
    request = TokenizeRequest(prompt="a", model="alias")
    changed = RequestOverrides(model="real", cache_salt="tenant").applied_to(request)
    assert (changed.model, hasattr(changed, "cache_salt")) == ("real", False)


@pytest.mark.parametrize(
    "headers",
    [
        {PRIORITY_HEADER: "high"},
        {PRIORITY_HEADER: ""},
        {TOKENS_HEADER: "4"},
        {TOKENS_HEADER: "ab/-1"},
        {TOKENS_HEADER: "ab/3"},
        {TOKENS_HEADER: "ab/1,2"},
        {TOKENS_HEADER: "ab/1,"},
        {TOKENS_HEADER: "ab/1", PREFIX_HEADER: "1"},
        {TOKENS_HEADER: "ab/1", PREFIX_HEADER: f"-1/{'0' * 32}/s"},
        {TOKENS_HEADER: "ab/1", PREFIX_HEADER: "1/0/s"},
        {TOKENS_HEADER: "../4"},
    ],
)
def test_headers_that_no_router_writes_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=list(headers)[-1]):
        split_overrides(headers, b"0123456789")


@pytest.mark.parametrize("num_prompts", [0, 1, 3])
def test_tokens_of_other_prompts_than_the_requests_are_refused(num_prompts: int) -> None:
    with pytest.raises(ValidationError, match=f"of 2 prompts, the body has {num_prompts}"):
        PromptTokens.of("ab", [[1], [2]]).prompts(num_prompts)


@given(text=st.text(max_size=200))
def test_tokens_of_a_text_always_fit_its_body(text: str) -> None:
    """A tokenizer makes at most a token of each byte."""
    body = msgspec.json.encode({"model": "m", "prompt": text})
    assert PromptTokens.of("ab", [[2**32 - 1] * len(text.encode("utf-8", "replace"))]).fits(body)


def test_tokens_that_would_outgrow_what_replicas_read_do_not_fit() -> None:
    assert not PromptTokens.of("ab", [[1] * 3]).fits(b"{}")
