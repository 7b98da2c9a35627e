"""How a file is cut into chunks of lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ValidationError
from octavo_router.batches.planning import CHUNK_LINES, BatchPlan, lines_of

ENDPOINT = "/v1/completions"


def line(number: int, *, padding: int = 0) -> str:
    body = {"model": f"m{number % 3 and 1}", "prompt": "x" * padding}
    return json.dumps({"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body})


def planned(data: bytes, cuts: list[int] | None = None, *, max_lines: int = 10_000) -> BatchPlan:
    """The plan of `data`, fed in pieces that end at `cuts`."""
    plan = BatchPlan(ENDPOINT, max_lines=max_lines, max_line_bytes=10_000)
    ends = [*sorted(min(cut, len(data)) for cut in cuts or []), len(data)]
    for start, end in zip([0, *ends], ends, strict=False):
        plan.feed(data[start:end])
    plan.finish()
    return plan


LINES = st.lists(
    st.one_of(
        st.integers(0, 10**6).map(line),
        st.sampled_from(["", "   ", "\t", "no JSON", "[1]", '{"custom_id": 1}', "\u00e9" * 10]),
    ),
    max_size=3 * CHUNK_LINES,
)


@given(LINES, st.lists(st.integers(0, 20_000), max_size=6), st.booleans(), st.booleans())
def test_chunks_hold_every_line_once_however_the_file_arrives(
    lines: list[str], cuts: list[int], ends_with_newline: bool, is_from_windows: bool
) -> None:
    newline = "\r\n" if is_from_windows else "\n"
    data = (newline.join(lines) + newline * ends_with_newline).encode()
    meant = [each for each in lines if each.strip()]
    if not meant:
        with pytest.raises(ValidationError, match="no lines"):
            planned(data, cuts)
        return
    plan = planned(data, cuts)
    assert plan.chunks == planned(data).chunks
    assert [chunk.number for chunk in plan.chunks] == list(range(len(plan.chunks)))
    found: dict[int, str] = {}
    refused: list[int] = []
    first = 0
    for chunk in plan.chunks:
        assert 0 < chunk.num_lines <= CHUNK_LINES
        piece = data[chunk.start : chunk.start + chunk.num_bytes]
        refused += [first + refusal.line for refusal in chunk.refusals]
        found |= {first + place: text.decode().strip() for place, text in lines_of(chunk, piece)}
        first += chunk.num_lines
    assert first == len(meant)
    seen: set[str] = set()
    good = {}
    for place, text in enumerate(meant):
        if text.startswith('{"custom_id": "') and text not in seen:
            good[place] = text
            seen.add(text)
    assert found == good
    assert sorted(refused) == sorted(set(range(len(meant))) - good.keys())


def test_a_chunk_is_bounded_in_bytes() -> None:
    data = "\n".join(line(i, padding=9000) for i in range(2000)).encode()
    sizes = [chunk.num_bytes for chunk in planned(data).chunks]
    assert max(sizes) <= 4 * 2**20
    assert sum(sizes) == len(data)


def test_refusals_name_the_line_of_the_file() -> None:
    data = f"\n\n{line(1)}\n\nnonsense\n{line(1)}".encode()
    (chunk,) = planned(data).chunks
    assert (chunk.first_line, chunk.num_lines) == (3, 3)
    assert [(each.line, each.message.partition(":")[0]) for each in chunk.refusals] == [
        (1, "line 5"),
        (2, "line 6"),
    ]


def test_the_model_is_the_one_that_most_lines_ask_for() -> None:
    assert planned("\n".join(line(i) for i in range(10)).encode()).model == "m1"


def test_a_file_with_too_many_lines_is_refused() -> None:
    data = "\n".join(line(i) for i in range(4)).encode()
    assert planned(data, max_lines=4).chunks
    with pytest.raises(ValidationError, match="more than 3 lines"):
        planned(data, max_lines=3)
