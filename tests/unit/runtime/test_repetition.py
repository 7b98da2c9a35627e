"""Patterns that repeat at the end of an output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.sampling_params import RepetitionDetectionParams
from octavo_runtime.engine.repetition import ends_in_repetition


def found(output: list[int], low: int, high: int, count: int, prompt: tuple[int, ...] = ()) -> bool:
    params = RepetitionDetectionParams(max_pattern_size=high, min_pattern_size=low, min_count=count)
    return ends_in_repetition([*prompt, *output], len(prompt), params)


@pytest.mark.parametrize(
    ("output", "low", "high", "count", "expected"),
    [
        ([1, 1, 1], 1, 1, 3, True),
        ([1, 1], 1, 1, 3, False),
        ([5, 1, 2, 1, 2], 1, 3, 2, True),
        ([1, 2, 1, 2, 5], 1, 3, 2, False),
        ([1, 2, 1, 2], 3, 5, 2, False),
        ([1, 1, 1, 1], 2, 2, 2, True),
        ([1, 2, 3] * 4, 3, 3, 4, True),
        ([1, 2, 3] * 4, 0, 2, 2, False),
        ([1, 1, 1], 0, 0, 0, False),
        ([], 1, 4, 2, False),
    ],
)
def test_a_pattern_counts_by_its_size_and_number(
    output: list[int], low: int, high: int, count: int, expected: bool
) -> None:
    assert found(output, low, high, count) is expected


def test_the_prompt_does_not_count() -> None:
    assert not found([1, 1], 1, 1, 3, prompt=(1, 1, 1))
    assert found([1, 1, 1], 1, 1, 3, prompt=(1,))


@given(
    output=st.lists(st.integers(0, 1), max_size=14),
    low=st.integers(0, 3),
    width=st.integers(0, 3),
    count=st.integers(2, 4),
)
def test_it_finds_what_comparing_slices_finds(
    output: list[int], low: int, width: int, count: int
) -> None:
    sizes = range(max(1, low), low + width + 1)
    expected = any(
        len(output) >= size * count and output[-size * count :] == output[-size:] * count
        for size in sizes
    )

    assert found(output, low, low + width, count) is expected
