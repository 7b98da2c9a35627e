"""What the watches tell: whose turn a change is, and when what they know cannot be trusted."""

from typing import Any

import pytest

from octavo_operator.references import References
from octavo_operator.relisting import Relisting


def body(uid: str) -> dict[str, Any]:
    return {"metadata": {"uid": uid}}


@pytest.mark.parametrize(
    ("events", "happened"),
    [
        ([(None, "a"), (None, "b")], False),
        ([(None, "a"), ("MODIFIED", "a"), ("ADDED", "b"), ("MODIFIED", "b")], False),
        ([(None, "a"), (None, "a")], True),
        ([("ADDED", "b"), (None, "b")], True),
        ([("ADDED", "b"), ("DELETED", "b"), (None, "b")], False),
    ],
)
def test_a_listing_of_what_was_seen_before_is_a_second_one(
    events: list[tuple[str | None, str]], happened: bool
) -> None:
    relisting = Relisting()
    for event, uid in events:
        relisting.note(event, body(uid))
    assert relisting.happened.is_set() is happened


def test_a_change_concerns_what_an_object_refers_to_now_and_what_it_did_before() -> None:
    references: References[str] = References()

    def concerned(uid: str, *now: str, is_gone: bool = False) -> set[str]:
        return set(references.concerned(uid, now, is_gone=is_gone))

    assert concerned("a", "chat") == {"chat"}
    assert concerned("b", "code") == {"code"}
    assert concerned("a", "talk") == {"chat", "talk"}, "another may have the old name now"
    assert concerned("a", "talk") == {"talk"}
    assert concerned("a", "talk", is_gone=True) == {"talk"}
    assert concerned("a", "new") == {"new"}
