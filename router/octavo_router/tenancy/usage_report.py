"""Reads what tenants have used out of Redis: sums of days, and single requests."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import redis

from octavo_protocol.errors import ConfigError
from octavo_protocol.keys import USAGE, USAGE_DAYS, usage_day
from octavo_router.tenancy.usage import UsageRecord

COLUMNS = ("day", "tenant", "model")
SUMS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
Row = dict[str, str | int | float]

_AGE = re.compile(r"(\d{1,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_PAGE = 1000


def moment(text: str, now: datetime) -> datetime:
    """`2026-01-31`, `2026-01-31T08:00`, or an age such as 7d, 24h or 30m; in UTC.

    Raises `ConfigError`.
    """
    try:
        if match := _AGE.fullmatch(text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        given = datetime.fromisoformat(text)
        return given.replace(tzinfo=UTC) if given.tzinfo is None else given.astimezone(UTC)
    except (OverflowError, ValueError):
        raise ConfigError(
            f"{text!r} is no time; write a date as 2026-01-31, a time as 2026-01-31T08:00 (UTC), or"
            " an age as 7d, 24h or 30m"
        ) from None


def columns(text: str) -> tuple[str, ...]:
    """What to sum by. Raises `ConfigError`."""
    named = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in named:
        if name not in COLUMNS:
            raise ConfigError(f"usage is summed by {', '.join(COLUMNS)}, not by {name!r}")
    return named


def read_days(
    client: redis.Redis, since: datetime, until: datetime
) -> dict[str, Mapping[bytes, bytes]]:
    """The sums of every day from `since` to `until`, both included."""
    num_days = min((until.date() - since.date()).days + 1, USAGE_DAYS)
    names = [f"{until - timedelta(days=age):%Y-%m-%d}" for age in reversed(range(num_days))]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(usage_day(name))
        return dict(zip(names, pipe.execute(), strict=True))


def summed(
    days: Mapping[str, Mapping[bytes, bytes]], by: Sequence[str], *, tenant: str | None = None
) -> list[Row]:
    """One row for each combination of the columns `by` that occurs. tenant: of this one only."""
    rows: dict[tuple[str, ...], Row] = {}
    for day, fields in days.items():
        for raw, value in fields.items():
            name, model, what = msgspec.json.decode(raw, type=tuple[str, str, str])
            if tenant not in (None, name):
                continue
            cells = {"day": day, "tenant": name, "model": model}
            key = tuple(cells[each] for each in by)
            named: Row = {each: cells[each] for each in by}
            row = rows.setdefault(key, {**named, **dict.fromkeys(SUMS, 0)})
            row[what] = int(row[what]) + int(value)
    return [rows[key] for key in sorted(rows)]


def read_records(client: redis.Redis, since: datetime, until: datetime) -> Iterator[Row]:
    """Single requests, by the time of their end; only the newest are kept."""
    begin, end = f"{since.timestamp() * 1000:.0f}", f"{until.timestamp() * 1000:.0f}"
    while True:
        page = cast(list[Any], client.xrange(USAGE, begin, end, count=_PAGE))
        for entry, fields in page:
            text = {name.decode(): value.decode() for name, value in fields.items()}
            record = msgspec.convert(text, UsageRecord, strict=False)
            ended = datetime.fromtimestamp(int(entry.split(b"-")[0]) / 1000, UTC)
            yield {"time": ended.isoformat(timespec="milliseconds"), **msgspec.to_builtins(record)}
        if len(page) < _PAGE:
            return
        begin = "(" + page[-1][0].decode()


def as_json(rows: Iterable[Row]) -> Iterator[str]:
    """One object a line."""
    return (msgspec.json.encode(row).decode() for row in rows)


def as_csv(rows: Iterable[Row]) -> Iterator[str]:
    """With a line of names first, where there are rows."""
    for number, row in enumerate(rows):
        if number == 0:
            yield _line(row.keys())
        yield _line(row.values())


def as_table(rows: Iterable[Row]) -> Iterator[str]:
    found = list(rows)
    listed = [[str(cell) for cell in row.values()] for row in found]
    if not found:
        return
    lines = [[name.upper() for name in found[0]], *listed]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    is_number = [isinstance(cell, int | float) for cell in found[0].values()]
    for line in lines:
        yield "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
