"""`FlatLogprobs` reads like a list of dictionaries."""

import pytest

from octavo_protocol.logprobs import FlatLogprobs
from octavo_protocol.outputs import Logprob

POSITIONS: list[dict[int, Logprob]] = [
    {17: Logprob(-0.5, 1, "a"), 5: Logprob(-1.0, 2, None)},
    {},
    {9: Logprob(-0.1, None, "b"), 5: Logprob(-2.0, 2, "c"), 3: Logprob(-3.0, 3, "d")},
]


def filled() -> FlatLogprobs:
    flat = FlatLogprobs()
    flat.extend([POSITIONS[0], None, POSITIONS[2]])
    return flat


def test_it_reads_like_the_list_that_went_in() -> None:
    flat = filled()

    assert len(flat) == 3
    assert list(flat) == POSITIONS
    assert [flat[i] for i in (0, 1, -1)] == POSITIONS
    assert flat == POSITIONS
    assert flat[0][17].decoded_token == "a"
    with pytest.raises(IndexError):
        flat[3]


def test_slices_and_sums_are_flat_again() -> None:
    flat = filled()

    for part in (flat[1:], flat[:2], flat[::-1], flat[5:]):
        assert isinstance(part, FlatLogprobs)
    assert flat[1:] == POSITIONS[1:]
    assert flat[::-1] == POSITIONS[::-1]
    assert flat[:1] + flat[1:] == flat
    assert (flat[2:] + flat[:1]).token_ids == [9, 5, 3, 17, 5]


def test_the_columns_hold_every_entry_once() -> None:
    flat = filled()

    assert flat.token_ids == [17, 5, 9, 5, 3]
    assert flat.logprobs == [-0.5, -1.0, -0.1, -2.0, -3.0]
    assert flat.ranks == [1, 2, None, 2, 3]
    assert flat.decoded_tokens == ["a", None, "b", "c", "d"]
    assert (flat.start_indices, flat.end_indices) == ([0, 2, 2], [2, 2, 5])


def test_what_is_added_later_does_not_change_a_slice() -> None:
    flat = filled()
    part = flat[:]

    flat.append_fast([1], [-1.0], [1], ["x"])

    assert (len(part), len(flat)) == (3, 4)
    assert part != flat


def test_it_differs_from_what_is_no_list() -> None:
    assert FlatLogprobs() != 5
    assert FlatLogprobs() == []
    assert repr(filled()[:1]).startswith("FlatLogprobs([{17: Logprob(")
