"""Which session a request belongs to, for policies that keep sessions together.

The header `x-session-id`, else `session_id` or `user` of the body. It decides where the request is
computed and nothing else.
"""

from collections.abc import Mapping

import msgspec

SESSION_HEADER = "x-session-id"


class _Body(msgspec.Struct):
    session_id: object = None
    user: object = None


def session_of(headers: Mapping[str, str], body: bytes) -> str | None:
    """None where the client names none. `body`: valid JSON, an object."""
    if given := headers.get(SESSION_HEADER):
        return given
    fields = msgspec.json.decode(body, type=_Body)
    named = (each for each in (fields.session_id, fields.user) if isinstance(each, str) and each)
    return next(named, None)
