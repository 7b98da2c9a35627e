"""Sums and forms of what `octavo usage` prints."""

from datetime import UTC, datetime

import msgspec
import pytest

from octavo_protocol.errors import ConfigError
from octavo_router.tenancy.usage_report import as_csv, as_json, as_table, columns, moment, summed

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)


def field(tenant: str, model: str, what: str) -> bytes:
    return msgspec.json.encode([tenant, model, what])


DAYS = {
    "2026-03-04": {
        field("acme", "m", "requests"): b"2",
        field("acme", "m", "prompt_tokens"): b"30",
        field("b,c", "m", "requests"): b"1",
    },
    "2026-03-05": {
        field("acme", "n", "requests"): b"1",
        field("acme", "m", "output_tokens"): b"7",
    },
}
REST = {"cached_tokens": 0}


def test_sums_are_by_what_is_asked() -> None:
    assert summed(DAYS, ("tenant",)) == [
        {"tenant": "acme", "requests": 3, "prompt_tokens": 30, **REST, "output_tokens": 7},
        {"tenant": "b,c", "requests": 1, "prompt_tokens": 0, **REST, "output_tokens": 0},
    ]
    assert [
        (row["day"], row["model"]) for row in summed(DAYS, ("day", "model"), tenant="acme")
    ] == [
        ("2026-03-04", "m"),
        ("2026-03-05", "m"),
        ("2026-03-05", "n"),
    ]
    assert summed({}, ("tenant",)) == []


def test_rows_are_printed_as_table_csv_and_json() -> None:
    rows = summed(DAYS, ("tenant",))
    assert list(as_table(rows)) == [
        "TENANT  REQUESTS  PROMPT_TOKENS  CACHED_TOKENS  OUTPUT_TOKENS",
        "acme           3             30              0              7",
        "b,c            1              0              0              0",
    ]
    assert list(as_csv(rows)) == [
        "tenant,requests,prompt_tokens,cached_tokens,output_tokens",
        "acme,3,30,0,7",
        '"b,c",1,0,0,0',
    ]
    assert [msgspec.json.decode(line) for line in as_json(rows)] == rows
    assert list(as_table([])) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T08:30", datetime(2026, 1, 31, 8, 30, tzinfo=UTC)),
        ("2026-01-31T08:30+02:00", datetime(2026, 1, 31, 6, 30, tzinfo=UTC)),
        ("7d", datetime(2026, 2, 26, 12, tzinfo=UTC)),
        ("36h", datetime(2026, 3, 4, 0, tzinfo=UTC)),
    ],
)
def test_times_are_dates_or_ages(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected


def test_wrong_times_and_columns_say_what_to_write() -> None:
    for text in ("yesterday", "7w", "999999d"):
        with pytest.raises(ConfigError, match="write a date as 2026-01-31"):
            moment(text, NOW)
    with pytest.raises(ConfigError, match="day, tenant, model, not by 'key'"):
        columns("tenant, key")
    assert columns(" day,model ") == ("day", "model")
