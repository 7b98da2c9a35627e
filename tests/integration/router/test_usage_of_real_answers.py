"""What the router counts is what a real server's answers tell, of every API, streamed or whole."""

from pathlib import Path
from typing import Any

import pytest
from tests.fakes.router_cluster import RouterCluster, until
from tests.integration.replica.harness import MODEL, Replica
from tests.integration.router.test_tenants import tenants, usage_records

from octavo_router.tenancy.usage import counts_of_answer

pytestmark = pytest.mark.integration

TEXT = "The quick brown fox jumps over the lazy dog. " * 2
MESSAGES = [{"role": "user", "content": TEXT}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": TEXT, "max_tokens": 9, "n": 2},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 9},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
}


async def test_every_api_is_counted_as_it_counts_itself(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    real = Replica(tmp_path, redis_url=cluster.redis.url)
    try:
        real.wait_ready()
        path = tenants(tmp_path, {"name": "acme", "limits": {"max_output_tokens": 20}})
        router = await cluster.router(1, tenants=path)
        key = {"authorization": "Bearer acme-key"}
        told = []
        for route, body in REQUESTS.items():
            for is_stream in (False, True):
                fields = {"model": MODEL, **body, "stream": is_stream}
                async with router.client.post(route, json=fields, headers=key) as response:
                    answer = await response.read()
                    assert response.status == 200, answer
                if not is_stream:
                    told += [counts_of_answer(answer)] * 2
        async with router.client.post(
            "/v1/messages/count_tokens", json={"model": MODEL, "messages": MESSAGES}, headers=key
        ) as response:
            assert response.status == 200
        endless = {"model": MODEL, "prompt": TEXT, "ignore_eos": True, "max_tokens": None}
        async with router.client.post("/v1/completions", json=endless, headers=key) as response:
            assert (await response.json())["usage"]["completion_tokens"] == 20

        await until(lambda: len(usage_records(cluster)) == 9)
        counted = usage_records(cluster)[:8]
        for record, counts in zip(counted, told, strict=True):
            assert counts is not None
            assert record.status == 200
            assert (record.prompt_tokens, record.output_tokens) == (counts.prompt, counts.output)
        # The prompt comes a second time: of the tenant's own, the cache has it.
        for first, again in zip(counted[::2], counted[1::2], strict=True):
            assert again.cached_tokens >= first.cached_tokens
            assert 0 < again.cached_tokens < again.prompt_tokens
    finally:
        real.close()
