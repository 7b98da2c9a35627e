"""Whose session a request is."""

import pytest

from octavo_router.sessions import session_of


@pytest.mark.parametrize(
    ("headers", "body", "session"),
    [
        ({"x-session-id": "h"}, b'{"session_id": "s", "user": "u"}', "h"),
        ({"x-session-id": ""}, b'{"session_id": "s", "user": "u"}', "s"),
        ({}, b'{"model": "m", "session_id": "s", "user": "u"}', "s"),
        ({}, b'{"user": "u", "messages": [{"role": "user", "content": "hi"}]}', "u"),
        ({}, b'{"session_id": null, "user": "u"}', "u"),
        ({}, b'{"session_id": 7, "user": ""}', None),
        ({}, b"{}", None),
    ],
)
def test_the_header_comes_before_the_body(
    headers: dict[str, str], body: bytes, session: str | None
) -> None:
    assert session_of(headers, body) == session
