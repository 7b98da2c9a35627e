"""Requests on their way up: every line asks the model, whatever the pieces."""

import json
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import batch_input
from octavo.batch_input import PieceReader, asked_of
from octavo_protocol.errors import ConfigError

REQUEST = {"custom_id": "é", "url": "/v1/completions", "body": {"prompt": "a", "seed": 2**53}}
ODD = (b"", b"nonsense", b"[]", b'{"body": 7}', b"\xff", b"{}\r")


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return (data[start:end] for start, end in pairwise(ends))


@given(
    lines=st.lists(st.sampled_from([json.dumps(REQUEST).encode(), *ODD])),
    places=st.lists(st.integers(0, 300)),
)
def test_each_request_asks_the_model_and_all_else_stays(
    lines: list[bytes], places: list[int]
) -> None:
    asked = b"".join(asked_of("m", cut(b"\n".join(lines), places))).split(b"\n")

    for before, after in zip(lines or [b""], asked, strict=True):
        if before in ODD:
            assert after == before
        else:
            expected = {**REQUEST, "body": {"prompt": "a", "seed": 2**53, "model": "m"}}
            assert json.loads(after) == expected


def test_a_model_that_a_line_names_is_replaced() -> None:
    line = json.dumps({"body": {"model": "other"}}).encode()
    assert json.loads(b"".join(asked_of("m", [line]))) == {"body": {"model": "m"}}


def test_a_line_without_an_end_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_input, "_MAX_LINE_BYTES", 10)
    with pytest.raises(ConfigError, match="line 3 of the input is longer"):
        list(asked_of("m", [b"a\nb\nlonger ", b"than that"]))


def test_a_reader_skips_empty_pieces_and_ends_once() -> None:
    reader = PieceReader([b"", b"a", b"", b"b"])
    assert [reader.read(1) for _ in range(4)] == [b"a", b"b", b"", b""]
