"""`octavo usage`: what tenants have used."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from octavo.cli.options import option
from octavo_protocol.errors import ConfigError


def usage(
    *,
    redis_url: Annotated[
        str | None, option("--redis-url", help="Redis that the routers use.", show_default=False)
    ] = None,
    since: Annotated[
        str,
        typer.Option(help="From when: 2026-01-31, 2026-01-31T08:00 (UTC), or 7d, 24h, 30m ago."),
    ] = "30d",
    until: Annotated[
        str | None, typer.Option(help="Until when, written alike. Default: now.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What to sum by, separated by commas: day, tenant, model.")
    ] = "tenant,model",
    records: Annotated[
        bool, typer.Option("--records", help="Single requests, the newest of them, and no sums.")
    ] = False,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.")] = None,
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="How to print it.")] = (
        "table"
    ),
) -> None:
    """Print what tenants have used: requests, and tokens of prompts, from caches and of outputs.

    Sums are of whole days in UTC. Routers with --tenants write them.
    """
    import redis

    from octavo_router.tenancy import usage_report

    if redis_url is None:
        raise ConfigError("give the Redis of the routers with --redis-url")
    now = datetime.now(UTC)
    begin, end = usage_report.moment(since, now), usage_report.moment(until or "0m", now)
    names = usage_report.columns(by)
    printed = {
        "table": usage_report.as_table,
        "csv": usage_report.as_csv,
        "json": usage_report.as_json,
    }[format]
    try:
        with redis.Redis.from_url(redis_url) as client:
            if records:
                rows = usage_report.read_records(client, begin, end)
                for line in printed(each for each in rows if tenant in (None, each["tenant"])):
                    print(line)
                return
            days = usage_report.read_days(client, begin, end)
    except (redis.RedisError, ValueError) as error:
        raise ConfigError(f"cannot read usage from Redis: {error}") from error
    for line in printed(usage_report.summed(days, names, tenant=tenant)):
        print(line)
