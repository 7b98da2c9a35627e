"""Tenants of a real server share what is declared, whatever API they ask by, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.router_cluster import RouterCluster, until
from tests.fakes.tiny_model import tiny_tokenizer
from tests.integration.replica.harness import MODEL, Replica
from tests.integration.router.test_tenants import tenants, usage_records

from octavo_protocol.continuation import CONTINUE
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.overrides import PREFIX_HEADER, split_overrides
from octavo_protocol.packed_ids import pack
from octavo_router.tenancy.directory import load_directory

pytestmark = pytest.mark.integration

BLOCK_SIZE = 16
SYSTEM = "You sell the quick brown fox to the lazy dog. " * 3
GUIDE = "A question and its answer, for the dog and the fox: " * 2
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def chat(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"messages": messages, "max_tokens": 3, **more}


def in_blocks(prefix: str) -> int:
    """Tokens of the full blocks of `prefix`."""
    return len(tiny_tokenizer().encode(prefix)) // BLOCK_SIZE * BLOCK_SIZE


async def test_what_is_declared_is_cached_once_and_all_that_follows_for_each_tenant(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    system = in_blocks(f"<|start|>system\n{SYSTEM}<|end|>\n<|start|>user\n")
    guide = in_blocks(GUIDE)
    question = "how much is it, and how quick? " * 2
    whole = in_blocks(
        f"<|start|>system\n{SYSTEM}<|end|>\n<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
    )
    assert 0 < guide < system < whole
    user = [{"role": "user", "content": "another one"}]
    story: list[tuple[str, str, dict[str, Any], int]] = [
        ("one", CHAT, chat(question), 0),
        ("two", CHAT, chat(question), system),
        ("two", CHAT, chat(question), whole),
        ("two", CHAT, chat("something else", stream=True), system),
        ("two", CHAT, chat(question, cache_salt="its own"), system),
        ("two", "/v1/messages", {"system": SYSTEM, "messages": user, "max_tokens": 3}, system),
        ("one", "/v1/responses", {"instructions": SYSTEM, "input": "and then?"}, system),
        ("stranger", CHAT, chat(question), 0),
        ("stranger", CHAT, chat(question), whole),
        ("one", TEXT, {"prompt": GUIDE + "one", "max_tokens": 3}, 0),
        ("two", TEXT, {"prompt": [GUIDE + "two"], "max_tokens": 3}, guide),
        ("two", TEXT, {"prompt": tiny_tokenizer().encode(GUIDE + "2"), "max_tokens": 3}, guide),
        ("stranger", TEXT, {"prompt": GUIDE + "three", "max_tokens": 3}, 0),
    ]
    sharers = {"tenants": ["one", "two"]}
    path = tenants(
        tmp_path,
        *({"name": name, "may_override": ["replica"]} for name in ("one", "two", "stranger")),
        shared_prefixes=[
            {"name": "shop", "system": SYSTEM, **sharers},
            {"name": "guide", "text": GUIDE, **sharers},
        ],
    )
    real = Replica(tmp_path, redis_url=cluster.redis.url, engine={"block_size": BLOCK_SIZE})
    try:
        real.wait_ready()
        router = await cluster.router(1, tenants=path)
        for tenant, route, body, _ in story:
            key = {"authorization": f"Bearer {tenant}-key"}
            async with router.client.post(
                route, json={"model": MODEL, **body}, headers=key
            ) as response:
                assert response.status == 200, await response.read()
                await response.read()
        await until(lambda: len(usage_records(cluster)) == len(story))
        cached = [record.cached_tokens for record in usage_records(cluster)]
        assert cached == [expected for *_, expected in story]

        async def is_predicted() -> bool:
            """Once the replica's events are here."""
            key = {"authorization": "Bearer one-key"}
            body = {"model": MODEL, **chat("never asked")}
            async with router.client.post("/debug/route", json=body, headers=key) as response:
                return bool((await response.json())["predicted_cached_tokens"] == system)

        await until(is_predicted)
    finally:
        real.close()


async def test_a_stream_that_goes_on_elsewhere_shares_what_it_shared(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replicas = [await cluster.replica(name, takes_prompt_tokens=True) for name in "ab"]
    for replica in replicas:
        replica.behaviour.drop_after_chunks = 3
    path = tenants(tmp_path, {"name": "one"}, shared_prefixes=[{"name": "guide", "text": GUIDE}])
    router = await cluster.router(2, tenants=path, continue_patience_s=0.1)
    headers = {"authorization": "Bearer one-key", PREFIX_HEADER: f"1/{'0' * 32}/mine"}
    body = {"model": "fake", "prompt": GUIDE + "one", "stream": True}
    async with router.client.post(TEXT, json=body, headers=headers) as response:
        await response.read()
    requests = [each for replica in replicas for each in replica.seen.requests]
    assert {each.path for each in requests} == {TEXT, CONTINUE + TEXT}
    told = [split_overrides(each.headers, each.body)[1].prompt_tokens for each in requests]
    prefix = SharedPrefix.of(pack(tiny_tokenizer().encode(GUIDE.rstrip())), router_salt(path))
    assert [each and each.shared for each in told] == [prefix] * len(requests)


def router_salt(path: Path) -> str:
    [prefix] = load_directory(path).shared_prefixes
    return prefix.cache_salt
