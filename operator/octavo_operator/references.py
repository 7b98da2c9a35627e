"""What objects refer to, so that what one has ceased to refer to gets a turn as well."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Target = TypeVar("Target", bound=Hashable)


class References(Generic[Target]):
    """Of all objects of one kind."""

    def __init__(self) -> None:
        self._last: dict[str, frozenset[Target]] = {}

    def concerned(self, uid: str, now: Iterable[Target], *, is_gone: bool) -> frozenset[Target]:
        """What a change of the object `uid` concerns: what it refers to now, and did before."""
        current = frozenset(now)
        before = self._last.pop(uid, frozenset())
        if not is_gone:
            self._last[uid] = current
        return current | before
