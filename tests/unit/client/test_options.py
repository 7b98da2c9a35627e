"""Sizes, lengths and tables as people write them on the command line."""

import pytest
import typer

from octavo.cli.options import parse_length, parse_size, parse_table


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("4k", 4000),
        ("4K", 4096),
        ("4Ki", 4096),
        ("4ki", 4096),
        ("1Mi", 2**20),
        ("1.5G", 3 * 2**29),
        ("25.6k", 25600),
        ("2GiB", 2**31),
        ("10 MB", 10 * 2**20),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5", "4x", "4i", "0.0001k", "1e3"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_size(text)


@pytest.mark.parametrize(("text", "value"), [("auto", -1), ("-1", -1), ("4k", 4000)])
def test_lengths_may_be_what_fits(text: str, value: int) -> None:
    assert parse_length(text) == value


def test_tables_are_json_objects() -> None:
    assert parse_table('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("text", ["", "{a: 1}", "[1]", "3"])
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not"):
        parse_table(text)
