"""A set of digests knows what was there, in little memory."""

from hypothesis import given
from hypothesis import strategies as st

from octavo_router.batches.digests import DigestSet


@given(st.lists(st.text(max_size=3)))
def test_only_the_first_of_equal_texts_is_new(texts: list[str]) -> None:
    digests = DigestSet()
    seen: set[str] = set()
    for text in texts:
        assert digests.add(text) is (text not in seen)
        seen.add(text)


def test_many_texts_take_at_most_32_bytes_each() -> None:
    digests = DigestSet()
    assert all(digests.add(str(i)) for i in range(20_000))
    assert not any(digests.add(str(i)) for i in range(0, 20_000, 7))
    assert len(digests._table) * 8 <= 32 * 20_000
