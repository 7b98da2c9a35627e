"""Sizes and lists as people write them on the command line."""

import pytest
import typer

from octavo.cli.options import parse_size
from octavo.cli.serve import spread_served_names


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


@pytest.mark.parametrize(
    ("arguments", "spread"),
    [
        ("serve m --served-model-name a b --port 1", "serve m -a -b --port 1"),
        ("serve m --served-model-name a --served-model-name b", "serve m -a -b"),
        ("serve m --served-model-name a", "serve m -a"),
        ("serve --served-model-name a m", "serve --served-model-name a m"),
        ("router --port 1", "router --port 1"),
        ("serve", "serve"),
        ("", ""),
    ],
)
def test_served_names_may_follow_one_flag(arguments: str, spread: str) -> None:
    wanted = spread.replace("-a", "--served-model-name a").replace("-b", "--served-model-name b")
    if spread.startswith("serve --served"):
        wanted = spread
    assert spread_served_names(arguments.split()) == wanted.split()
