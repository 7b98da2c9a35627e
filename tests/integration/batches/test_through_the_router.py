"""Files and batches of a whole router: its checks, its replicas, its tenants."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import redis.asyncio
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until

from octavo.local.redis_server import EmbeddedRedis
from octavo_protocol.overrides import PRIORITY_HEADER
from octavo_protocol.priorities import BACKGROUND_PRIORITY
from octavo_router.tenancy.directory import key_hash

pytestmark = pytest.mark.integration


@pytest.fixture
async def cluster(redis_server: EmbeddedRedis) -> AsyncIterator[RouterCluster]:
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.flushall()
    async with AsyncExitStack() as stack:
        yield RouterCluster(redis_server, stack)


def client_of(router: RunningRouter, key: str = "-") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key=key, max_retries=0)


async def submit(client: openai.AsyncOpenAI, bodies: list[dict[str, Any]]) -> str:
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body}
        for i, body in enumerate(bodies)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = await client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )
    return batch.id


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    async def has_ended() -> bool:
        return (await client.batches.retrieve(batch_id)).status in ("completed", "failed")

    await until(has_ended, seconds=120)
    return await client.batches.retrieve(batch_id)


async def lines(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


async def test_lines_are_answered_by_replicas_as_background_work(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replicas = [await cluster.replica("a"), await cluster.replica("b")]
    router = await cluster.router(2, files_url=str(tmp_path / "files"))
    async with client_of(router) as client:
        bodies: list[dict[str, Any]] = [{"model": "fake", "prompt": f"p {i}"} for i in range(20)]
        bodies += [{"model": "nobody", "prompt": "x"}, {"model": "fake", "prompt": "x", "n": -1}]
        batch = await ended(client, await submit(client, bodies))
        assert (batch.status, batch.request_counts.completed) == ("completed", 20)
        output = await lines(client, batch.output_file_id)
        assert [line["custom_id"] for line in output] == [str(i) for i in range(20)]
        assert all(line["response"]["body"]["choices"] for line in output)
        errors = await lines(client, batch.error_file_id)
        assert [line["response"]["status_code"] for line in errors] == [404, 400]
    received = [each for replica in replicas for each in replica.seen.requests]
    assert len(received) == 20
    assert {each.headers[PRIORITY_HEADER] for each in received} == {str(BACKGROUND_PRIORITY)}


async def test_lines_that_begin_alike_go_where_their_beginning_is(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    """However the file mixes them: each beginning is mostly asked of one replica. A line may go
    elsewhere where that replica has many waiting; without regard to beginnings a third would.
    """
    replicas = [await cluster.replica("a"), await cluster.replica("b")]
    for replica in replicas:
        replica.behaviour.first_token_s = 0.1
    router = await cluster.router(2, files_url=str(tmp_path / "files"))
    await router.completion("caches are known " * 20)
    await until(lambda: router.state.index_budget.num_entries > 0)
    groups = {name: f"{name} begins like this. " * 40 for name in ("one", "two", "three", "four")}
    async with client_of(router) as client:
        prompts = [f"{text}{i}" for i in range(6) for text in groups.values()]
        await ended(
            client, await submit(client, [{"model": "fake", "prompt": each} for each in prompts])
        )
    homes = {
        name: [
            sum(f'"{name} begins'.encode() in each.body for each in replica.seen.requests)
            for replica in replicas
        ]
        for name in groups
    }
    assert sum(min(counts) for counts in homes.values()) <= 4, homes


async def test_a_replica_that_breaks_costs_a_try_and_not_the_line(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    broken, good = await cluster.replica("a"), await cluster.replica("b")
    broken.behaviour.drop_after_chunks = 0
    router = await cluster.router(2, files_url=str(tmp_path / "files"))
    async with client_of(router) as client:
        bodies = [{"model": "fake", "prompt": f"p {i}"} for i in range(10)]
        batch = await ended(client, await submit(client, bodies))
    assert (batch.request_counts.completed, batch.request_counts.failed) == (10, 0)
    assert good.seen.requests


async def test_no_more_lines_run_than_replicas_have_places(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a", max_num_seqs=3)
    replica.behaviour.is_stalled = True
    router = await cluster.router(1, files_url=str(tmp_path / "files"))
    async with client_of(router) as client:
        await submit(client, [{"model": "fake", "prompt": f"p {i}"} for i in range(10)])
        await until(lambda: replica.seen.num_open == 3)
        assert router.state.batches is not None
        assert router.state.batches.room("fake", 3) == 3


async def test_batches_belong_to_their_tenant_and_count_for_it(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        f"secret: {'s' * 32}\ntenants:\n"
        f"  - {{name: acme, keys: ['{key_hash(b'acme-key')}'], models: [fake]}}\n"
        f"  - {{name: other, keys: ['{key_hash(b'other-key')}']}}\n"
    )
    replica = await cluster.replica("a")
    router = await cluster.router(1, files_url=str(tmp_path / "files"), tenants=tenants)
    async with client_of(router, "acme-key") as acme, client_of(router, "other-key") as other:
        bodies = [{"model": "fake", "prompt": "p"}, {"model": "secret", "prompt": "p"}]
        batch = await ended(acme, await submit(acme, bodies))
        assert batch.request_counts.completed == 1
        (error,) = await lines(acme, batch.error_file_id)
        assert error["response"]["status_code"] == 403
        with pytest.raises(openai.NotFoundError):
            await other.batches.retrieve(batch.id)
        assert (await other.files.list()).data == []
        async with client_of(router, "wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.batches.list()
    (request,) = replica.seen.requests
    assert request.headers["x-octavo-set-cache-salt"]
    assert request.headers[PRIORITY_HEADER] == str(BACKGROUND_PRIORITY)


async def test_a_tenant_at_its_limit_leaves_the_room_to_others(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    tenants = tmp_path / "tenants.yaml"
    tenants.write_text(
        f"secret: {'s' * 32}\ntenants:\n"
        f"  - {{name: small, keys: ['{key_hash(b'small-key')}'], limits: {{concurrency: 2}}}}\n"
        f"  - {{name: large, keys: ['{key_hash(b'large-key')}']}}\n"
    )
    replica = await cluster.replica("a", max_num_seqs=6)
    replica.behaviour.is_stalled = True
    router = await cluster.router(1, files_url=str(tmp_path / "files"), tenants=tenants)
    async with client_of(router, "small-key") as small, client_of(router, "large-key") as large:
        bodies = [{"model": "fake", "prompt": f"p {i}"} for i in range(12)]
        await submit(small, bodies)
        await until(lambda: replica.seen.num_open == 2)
        await submit(large, bodies)
        await until(lambda: replica.seen.num_open == 6)
        salts = [each.headers["x-octavo-set-cache-salt"] for each in replica.seen.requests]
        assert sorted(map(salts.count, set(salts))) == [2, 4]


async def test_a_router_without_files_has_no_such_routes(cluster: RouterCluster) -> None:
    await cluster.replica("a")
    router = await cluster.router(1)
    async with client_of(router) as client:
        with pytest.raises(openai.NotFoundError, match="no route"):
            await client.batches.list()


async def test_while_redis_is_away_files_and_batches_say_so(
    tmp_path: Path,
) -> None:
    with EmbeddedRedis() as server:
        async with AsyncExitStack() as stack:
            cluster = RouterCluster(server, stack)
            await cluster.replica("a")
            router = await cluster.router(1, files_url=str(tmp_path / "files"))
            server.stop()
            async with client_of(router) as client:
                with pytest.raises(openai.InternalServerError, match="Redis is away"):
                    await client.batches.list()
                status, _, _ = await router.completion("still answered")
                assert status == 200
