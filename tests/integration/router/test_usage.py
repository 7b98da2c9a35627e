"""The ledger in a real Redis, and `octavo usage` over it."""

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import redis
import redis.asyncio

from octavo.cli.main import main
from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.keys import USAGE, usage_day
from octavo_router.tenancy.ledger import MAX_KEPT, Entry, Ledger
from octavo_router.tenancy.limiter import Permit
from octavo_router.tenancy.limits import Verdict
from octavo_router.tenancy.redis_limits import limits_client
from octavo_router.tenancy.tenant import Tenant
from octavo_router.tenancy.usage import UsageRecord

pytestmark = pytest.mark.integration


@pytest.fixture
async def ledger(redis_server: EmbeddedRedis) -> AsyncIterator[Ledger]:
    client = limits_client(redis_server.url)
    yield Ledger(client, max_records=1000)
    await client.aclose()


def entry(tenant: str, model: str, *, output: int, status: int = 200) -> Entry:
    record = UsageRecord(tenant, "k1", model, "r1", status, 10, 4, output, 0.25)
    return Entry(Permit("p", Tenant(tenant), 0, None, Verdict()), record.num_tokens, record)


def printed(capsys: pytest.CaptureFixture[str], server: EmbeddedRedis, *flags: str) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["usage", "--redis-url", server.url, *flags])
    assert ending.value.code == 0
    return capsys.readouterr().out


async def test_sums_and_records_tell_what_was_used(
    ledger: Ledger, redis_server: EmbeddedRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(450):  # more than one write
        ledger.add(entry("acme" if number % 3 else "beta", "m", output=number % 2))
    ledger.add(entry("acme", "n", output=5, status=499))
    assert await ledger.flush()

    rows = list(csv.DictReader(io.StringIO(printed(capsys, redis_server, "--format", "csv"))))
    assert rows[1] == {
        "tenant": "acme",
        "model": "n",
        "requests": "1",
        "prompt_tokens": "10",
        "cached_tokens": "4",
        "output_tokens": "5",
    }
    assert [(row["tenant"], row["requests"], row["output_tokens"]) for row in rows] == [
        ("acme", "300", "150"),
        ("acme", "1", "5"),
        ("beta", "150", "75"),
    ]
    flags = ("--since", "1h", "--records", "--tenant", "acme", "--format", "json")
    records = [json.loads(line) for line in printed(capsys, redis_server, *flags).splitlines()]
    assert len(records) == 301
    ended = datetime.fromisoformat(records[-1].pop("time"))
    assert abs((datetime.now(UTC) - ended).total_seconds()) < 60
    assert records[-1] == {
        "tenant": "acme",
        "key": "k1",
        "model": "n",
        "request_id": "r1",
        "status": 499,
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 5,
        "seconds": 0.25,
    }
    assert printed(capsys, redis_server, "--since", "2020-01-01", "--until", "2020-02-01") == ""


async def test_the_stream_is_bounded_and_old_days_go(redis_server: EmbeddedRedis) -> None:
    now = datetime(2026, 3, 5, tzinfo=UTC).timestamp()
    client = limits_client(redis_server.url)
    ledger = Ledger(client, max_records=500, clock=lambda: now)
    for day in ("2025-01-20", "2025-01-29", "2025-01-30", "2025-01-31"):
        await client.hset(usage_day(day), "x", "1")
    for _ in range(2000):
        ledger.add(entry("acme", "m", output=1))
    assert await ledger.flush()
    assert 500 <= await client.xlen(USAGE) <= 700
    kept = sorted([key async for key in client.scan_iter("octavo:usage:*")])
    assert kept == [
        b"octavo:usage:2025-01-30",
        b"octavo:usage:2025-01-31",
        b"octavo:usage:2026-03-05",
    ]
    await client.aclose()


async def test_what_redis_cannot_be_told_is_kept_up_to_a_bound(
    ledger: Ledger, redis_server: EmbeddedRedis
) -> None:
    redis_server.child.kill()
    ledger.add(entry("acme", "m", output=1))
    assert not await ledger.flush()
    for _ in range(MAX_KEPT + 10):
        ledger.add(entry("acme", "m", output=1))
    assert ledger.num_lost == 11
    redis_server.start()
    assert await ledger.flush()
    with redis.Redis.from_url(redis_server.url) as client:
        day = f"{datetime.now(UTC):%Y-%m-%d}"
        assert client.hget(usage_day(day), '["acme","m","requests"]') == str(MAX_KEPT).encode()


def test_a_redis_that_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("redis://127.0.0.1:1", "http://x"):
        with pytest.raises(SystemExit) as ending:
            main(["usage", "--redis-url", url])
        assert ending.value.code == 2
        assert capsys.readouterr().err.startswith("octavo: cannot read usage from Redis: ")
