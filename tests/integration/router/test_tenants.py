"""Tenants through real routers on a real Redis, judged by the official client."""

import json
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import redis
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until

from octavo_protocol.keys import USAGE
from octavo_router.tenancy.directory import key_hash
from octavo_router.tenancy.usage import UsageRecord

pytestmark = pytest.mark.integration

PROMPT = "one two three four five six seven eight nine ten eleven twelve " * 4


def tenants(folder: Path, *entries: dict[str, Any], **more: Any) -> Path:
    """A file of tenants; the key of each is its name and "-key"."""
    for each in entries:
        each.setdefault("keys", [{"id": "k1", "hash": key_hash(f"{each['name']}-key".encode())}])
    path = folder / "tenants.yaml"
    path.write_text(json.dumps({"secret": "s" * 32, "tenants": entries, **more}))
    return path


def client(router: RunningRouter, tenant: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{router.url}/v1", api_key=f"{tenant}-key", max_retries=0, timeout=120
    )


async def ask(router: RunningRouter, tenant: str, **fields: Any) -> Any:
    async with client(router, tenant) as api:
        given = {"model": "fake", "prompt": PROMPT, "max_tokens": 8, **fields}
        return await api.completions.create(**given)


def usage_records(cluster: RouterCluster) -> list[UsageRecord]:
    with redis.Redis.from_url(cluster.redis.url, decode_responses=True) as connection:
        rows: Any = connection.xrange(USAGE)
        return [msgspec.convert(fields, UsageRecord, strict=False) for _, fields in rows]


async def test_only_keys_of_tenants_open_the_router(cluster: RouterCluster, tmp_path: Path) -> None:
    replica = await cluster.replica("a")
    path = tenants(tmp_path, {"name": "acme"}, {"name": "limited", "models": ["other"]})
    router = await cluster.router(1, tenants=path)

    answer = await ask(router, "acme")
    assert answer.usage.completion_tokens == 8
    with pytest.raises(openai.AuthenticationError):
        await ask(router, "stranger")
    with pytest.raises(openai.PermissionDeniedError, match="may not use the model 'fake'"):
        await ask(router, "limited")
    async with client(router, "limited") as api:
        assert [each.id async for each in api.models.list()] == []
    assert len(replica.seen.requests) == 1
    assert "authorization" not in replica.seen.requests[0].headers
    async with router.client.get("/ready") as response:
        assert response.status == 200


async def test_a_key_that_is_added_to_the_file_counts_without_a_restart(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    await cluster.replica("a")
    router = await cluster.router(1, tenants=tenants(tmp_path, {"name": "acme"}))
    (tmp_path / "tenants.yaml").write_text("tenants: [")
    await until(lambda: router.state.tenants.is_stale)  # type: ignore[union-attr]
    assert await router.metric("octavo_router_tenants_stale") == 1
    await ask(router, "acme")

    tenants(tmp_path, {"name": "new"})
    await until(lambda: not router.state.tenants.is_stale)  # type: ignore[union-attr]
    await ask(router, "new")
    with pytest.raises(openai.AuthenticationError):
        await ask(router, "acme")


async def test_two_tenants_never_share_a_cached_prefix(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    await cluster.replica("a")
    path = tenants(
        tmp_path,
        *({"name": name} for name in ("one", "two")),
        *({"name": name, "cache_group": "friends"} for name in ("three", "four")),
    )
    router = await cluster.router(1, tenants=path)

    async def cached(tenant: str, **fields: Any) -> int:
        answer = await ask(router, tenant, **fields)
        details = answer.usage.prompt_tokens_details
        return int(details.cached_tokens)

    first = [await cached(name) for name in ("one", "two", "three")]
    again = [await cached(name) for name in ("one", "two", "three", "four")]
    assert first == [0, 0, 0]
    assert all(number > 0 for number in again)
    own = {"extra_body": {"cache_salt": "private"}}
    assert await cached("one", **own) == 0
    assert await cached("one", **own) > 0
    assert await cached("two", **own) == 0
    assert await router.metric("octavo_router_cached_tokens_error_total") == 0


async def test_limits_hold_over_two_routers_and_say_so_as_openai_does(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    await cluster.replica("a")
    path = tenants(tmp_path, {"name": "acme", "limits": {"requests_per_minute": 3}})
    routers = [await cluster.router(1, tenants=path) for _ in range(2)]
    for number in range(3):
        async with client(routers[number % 2], "acme") as api:
            raw = await api.completions.with_raw_response.create(model="fake", prompt="hi")
            assert raw.headers["x-ratelimit-limit-requests"] == "3"
            assert raw.headers["x-ratelimit-remaining-requests"] == str(2 - number)
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")

    with pytest.raises(openai.RateLimitError) as raised:
        await ask(routers[0], "acme")
    headers = raised.value.response.headers
    assert raised.value.code == "rate_limit_exceeded"
    assert headers["x-octavo-reason"] == "requests_per_minute"
    assert 15 <= int(headers["retry-after"]) <= 20
    name = 'octavo_router_tenant_requests_total{outcome="requests_per_minute",tenant="acme"}'
    assert await routers[0].metric(name) == 1


async def test_reserved_tokens_are_settled_with_what_was_used(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    await cluster.replica("a")
    path = tenants(
        tmp_path,
        {"name": "acme", "limits": {"tokens_per_minute": 2000}},
        {"name": "poor", "budgets": {"tokens_per_day": 400}},
    )
    routers = [await cluster.router(1, tenants=path) for _ in range(2)]
    num_prompt = (await ask(routers[0], "acme", max_tokens=1500)).usage.prompt_tokens
    used = num_prompt + 8

    async def remaining() -> int:
        async with client(routers[1], "acme") as api:
            raw = await api.completions.with_raw_response.create(
                model="fake", prompt="hi", max_tokens=1
            )
            return int(raw.headers["x-ratelimit-remaining-tokens"])

    await until(lambda: len(usage_records(cluster)) == 1)
    assert await remaining() >= 2000 - used - 10
    await ask(routers[0], "poor", max_tokens=10)
    await until(lambda: usage_records(cluster)[-1].tenant == "poor")
    with pytest.raises(openai.RateLimitError, match="tokens_per_day=400") as raised:
        await ask(routers[1], "poor", max_tokens=150)
    assert raised.value.code == "insufficient_quota"


async def test_concurrency_is_given_back_when_the_client_leaves(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    path = tenants(tmp_path, {"name": "acme", "limits": {"concurrency": 1}})
    router = await cluster.router(1, tenants=path)
    replica.behaviour.chunk_s = 60
    async with client(router, "acme") as api:
        stream = await api.completions.create(model="fake", prompt=PROMPT, stream=True)
        await anext(stream)
        with pytest.raises(openai.RateLimitError, match="concurrency=1"):
            await ask(router, "acme")
        await stream.close()
    await until(lambda: len(usage_records(cluster)) == 1)
    replica.behaviour.chunk_s = 0
    await ask(router, "acme")
    await until(lambda: len(usage_records(cluster)) == 2)
    aborted, whole = usage_records(cluster)
    assert (aborted.status, aborted.output_tokens) == (499, 1)
    assert (whole.status, whole.output_tokens) == (200, 8)
    assert aborted.prompt_tokens == whole.prompt_tokens > 40


async def test_usage_of_a_stream_is_known_though_nobody_asked_for_it(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1, tenants=tenants(tmp_path, {"name": "acme"}))
    for is_traced in (True, False):
        replica.behaviour.is_traced = is_traced
        async with client(router, "acme") as api:
            options: Any = None if is_traced else {"include_usage": True}
            stream = await api.completions.create(
                model="fake", prompt=PROMPT, stream=True, stream_options=options
            )
            async for _ in stream:
                pass
    await until(lambda: len(usage_records(cluster)) == 2)
    traced, told = usage_records(cluster)
    assert (traced.tenant, traced.key, traced.model, traced.status) == ("acme", "k1", "fake", 200)
    assert traced.output_tokens == told.output_tokens == 8
    assert traced.prompt_tokens == told.prompt_tokens
    name = 'octavo_router_tenant_tokens_total{kind="output",tenant="acme"}'
    assert await router.metric(name) == 16


async def test_an_answer_that_is_given_again_is_counted_once(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    path = tenants(
        tmp_path,
        {"name": "acme", "limits": {"requests_per_minute": 2}},
        {"name": "beta"},
    )
    router = await cluster.router(1, tenants=path)
    again = {"extra_headers": {"idempotency-key": "k"}}
    texts = {(await ask(router, "acme", **again)).id for _ in range(3)}
    assert len(texts) == len(replica.seen.requests) == 1
    await ask(router, "beta", **again)
    assert len(replica.seen.requests) == 2, "another tenant's key is another one"
    await ask(router, "acme")
    with pytest.raises(openai.RateLimitError):
        await ask(router, "acme", extra_headers={"idempotency-key": "other"})
    await until(lambda: len(usage_records(cluster)) == 3)


async def test_without_redis_each_router_limits_for_itself_and_usage_waits(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    await cluster.replica("a")
    path = tenants(tmp_path, {"name": "acme", "limits": {"requests_per_minute": 2}})
    router = await cluster.router(1, tenants=path)
    cluster.redis.child.kill()
    for _ in range(2):
        await ask(router, "acme")
    with pytest.raises(openai.RateLimitError):
        await ask(router, "acme")
    assert await router.metric("octavo_router_limits_degraded") == 1
    cluster.redis.start()
    await until(lambda: len(usage_records(cluster)) == 2)


async def test_the_tenant_s_cap_bounds_what_names_no_length(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    path = tenants(tmp_path, {"name": "acme", "limits": {"max_output_tokens": 50}})
    router = await cluster.router(1, tenants=path)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at most 50"):
        await ask(router, "acme", max_tokens=51)
    async with client(router, "acme") as api:
        chat: Any = [{"role": "user", "content": "hi"}]
        await api.chat.completions.create(model="fake", messages=chat)
        await api.chat.completions.create(model="fake", messages=chat, max_completion_tokens=9)
    sent = [seen.headers.get("x-octavo-set-max-tokens") for seen in replica.seen.requests]
    assert sent == ["50", None]
