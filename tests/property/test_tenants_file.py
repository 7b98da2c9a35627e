"""No file of tenants, however broken, raises anything but the error that says what is wrong."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from octavo_protocol.errors import ConfigError
from octavo_router.tenancy.directory import make_directory

GOOD = f"""\
secret: "{"0" * 32}"
tenants:
  - name: acme
    keys: ["sha256:{"0" * 64}", {{id: ci, hash: "sha256:{"1" * 64}"}}]
    priority: {{default: 0, highest: -5}}
    limits: {{requests_per_minute: 60, concurrency: 5}}
aliases:
  canary: [{{model: llama-a, weight: 90}}, {{model: llama-b, weight: 10}}]
shared_prefixes:
  - {{name: assistant, messages: [{{role: system, content: Be kind.}}], tenants: [acme]}}
"""
_PIECES = st.sampled_from(
    [
        *("&a [*a]", "{", "- ", "? [a]\n: b", "~", "!!python/object:os.system", "\t", "1e999"),
        *("<<: *x", "2026-13-45", ".inf", "0x", "name: 1", "'", "\0", "[" * 2000, "é"),
    ]
)


def check(raw: bytes) -> None:
    with contextlib.suppress(ConfigError):
        make_directory({"f": raw})


def test_the_good_one_is_good() -> None:
    assert make_directory({"f": GOOD.encode()}).tenants[0].name == "acme"


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    check(raw)


@given(
    cut=st.integers(0, len(GOOD)),
    piece=st.text(max_size=8) | _PIECES,
    skipped=st.integers(0, 30),
)
def test_any_edit_of_a_good_file(cut: int, piece: str, skipped: int) -> None:
    check((GOOD[:cut] + piece + GOOD[cut + skipped :]).encode(errors="replace"))
