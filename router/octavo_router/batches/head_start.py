"""Lets the first line of a long beginning go ahead, so that those behind it find it in a cache.

Sent together, lines that begin alike would each compute that beginning, on whatever replica is
free. While the first is under way alone, others are held back for a moment; then routing sends
them where the beginning is.
"""

from typing import Generic, TypeVar

_REMEMBERED = 4096
Line = TypeVar("Line")


class HeadStarts(Generic[Line]):
    """Of beginnings that are told apart by their text; "" is none."""

    def __init__(self) -> None:
        self._held: dict[str, list[Line]] = {}
        self._known: dict[int, None] = {}

    @property
    def num_held(self) -> int:
        return sum(map(len, self._held.values()))

    def begin(self, beginning: str) -> bool:
        """A line of this beginning is sent: whether it is a first one, for which `end` is due."""
        if not beginning or hash(beginning) in self._known:
            return False
        self._known[hash(beginning)] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._held[beginning] = []
        return True

    def hold(self, beginning: str, line: Line) -> bool:
        """Whether the line has to wait, since a first one is under way."""
        if (held := self._held.get(beginning)) is None:
            return False
        held.append(line)
        return True

    def end(self, beginning: str) -> list[Line]:
        """The lines that waited: the first one is answered, or long under way."""
        return self._held.pop(beginning, [])
