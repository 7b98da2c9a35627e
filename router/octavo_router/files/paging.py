"""Pages of a sorted set: what `after`, `limit` and `order` of a list request mean."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import redis.asyncio

from octavo_protocol.errors import NotFoundError, ValidationError

_STEP = 100


@dataclass(frozen=True, slots=True)
class Page:
    """after: the id before the first one; None: from the start. limit: entries of a page."""

    after: str | None = None
    limit: int = 10_000
    order: Literal["asc", "desc"] = "desc"

    @classmethod
    def from_query(cls, query: Mapping[str, str], *, default: int, largest: int) -> "Page":
        """Raises `ValidationError` that names the parameter."""
        text = query.get("limit", str(default))
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= largest):
            raise ValidationError(
                f"limit must be a whole number from 1 to {largest}, not {text[:40]!r}",
                parameter="limit",
            )
        order = query.get("order", "desc")
        if order == "asc":
            return cls(query.get("after"), int(text), "asc")
        if order == "desc":
            return cls(query.get("after"), int(text), "desc")
        raise ValidationError(f"order must be asc or desc, not {order[:40]!r}", parameter="order")


async def page_of(client: redis.asyncio.Redis, key: str, page: Page) -> AsyncIterator[str]:
    """The members of the sorted set at `key` from the page's start on, to the set's end.

    Raises `NotFoundError` where `after` is not among them.
    """
    start = 0
    is_descending = page.order == "desc"
    if page.after is not None:
        rank = client.zrevrank if is_descending else client.zrank
        place = cast(int | None, await rank(key, page.after[:256]))
        if place is None:
            raise NotFoundError(f"there is no {page.after[:128]!r} in the list", parameter="after")
        start = place + 1
    while True:
        found = await client.zrange(key, start, start + _STEP - 1, desc=is_descending)
        for member in (members := cast(list[bytes], found)):
            yield member.decode()
        if len(members) < _STEP:
            return
        start += _STEP
