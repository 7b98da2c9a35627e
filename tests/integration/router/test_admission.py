"""Turns, deadlines, aliases and overrides through real routers."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.fakes.fake_replica import words
from tests.fakes.router_cluster import RouterCluster, RunningRouter, until
from tests.integration.router.test_tenants import (
    PROMPT,
    ask,
    client,
    tenants,
    usage_records,
)

from octavo_protocol.overrides import split_overrides

pytestmark = pytest.mark.integration


async def post(
    router: RunningRouter, *, headers: dict[str, str] | None = None, **fields: Any
) -> tuple[int, dict[str, Any], Any]:
    """(status, body, headers) of a completion."""
    body = {"model": "fake", "prompt": PROMPT, **fields}
    async with router.client.post("/v1/completions", json=body, headers=headers) as response:
        return response.status, await response.json(), response.headers


def num_queued(router: RunningRouter) -> int:
    router.state.measure()
    text = router.state.metrics.render().decode()
    lines = [line for line in text.splitlines() if line.startswith("octavo_router_queue_requests{")]
    return sum(int(float(line.split()[-1])) for line in lines)


async def test_requests_wait_for_room_and_go_on_in_order_of_priority_and_weight(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a", max_num_seqs=1)
    path = tenants(
        tmp_path,
        {"name": "first", "priority": -1},
        {"name": "heavy", "weight": 3},
        {"name": "light"},
    )
    router = await cluster.router(1, tenants=path)
    replica.behaviour.is_stalled = True
    blocker = asyncio.create_task(ask(router, "light"))
    await until(lambda: replica.seen.num_open == 1)

    waiting = []
    for tenant in ["light"] * 8 + ["heavy"] * 12 + ["first"]:
        waiting.append(asyncio.create_task(ask(router, tenant, max_tokens=600, user=tenant)))
        await until(lambda: num_queued(router) == len(waiting))
    assert len(replica.seen.requests) == 1
    replica.behaviour.is_stalled = False
    blocker.cancel()
    await asyncio.gather(*waiting)
    bodies = [split_overrides(each.headers, each.body)[0] for each in replica.seen.requests]
    turns = [json.loads(body)["user"] for body in bodies[1:]]  # as the replica saw them
    assert turns[0] == "first"
    assert Counter(turns[1:13])["heavy"] in (8, 9, 10)  # 3 : 1, within a request each
    assert num_queued(router) == 0


async def test_a_full_queue_refuses_with_a_reason_and_a_client_that_leaves_makes_place(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a", max_num_seqs=1)
    router = await cluster.router(1, queue_requests=2)
    replica.behaviour.is_stalled = True
    first = asyncio.create_task(post(router))
    await until(lambda: replica.seen.num_open == 1)
    others = [asyncio.create_task(post(router)) for _ in range(2)]
    await until(lambda: num_queued(router) == 2)

    status, body, headers = await post(router)
    assert (status, headers["x-octavo-reason"]) == (503, "queue_full")
    assert "2 requests" in body["error"]["message"]
    assert int(headers["retry-after"]) >= 1
    others[0].cancel()
    await until(lambda: num_queued(router) == 1)
    others[0] = asyncio.create_task(post(router))
    await until(lambda: num_queued(router) == 2)
    assert len(replica.seen.requests) == 1

    replica.behaviour.is_stalled = False
    first.cancel()
    answers = await asyncio.gather(*others)
    assert [status for status, _, _ in answers] == [200, 200]
    await asyncio.gather(first, return_exceptions=True)


async def test_a_first_token_that_is_too_late_is_refused_early_or_in_the_queue(
    cluster: RouterCluster,
) -> None:
    replica = await cluster.replica("a", max_num_seqs=1, prefill_tokens_per_s=100.0)
    router = await cluster.router(1, queue_requests=8)
    status, body, headers = await post(router, headers={"x-octavo-ttft-ms": "500"})
    assert (status, headers["x-octavo-reason"]) == (503, "deadline")
    assert "the first token is expected in 1.9" in body["error"]["message"]
    assert (await post(router, headers={"x-octavo-ttft-ms": "60000"}))[0] == 200
    assert len(replica.seen.requests) == 1

    replica.behaviour.is_stalled = True
    first = asyncio.create_task(post(router))
    await until(lambda: replica.seen.num_open == 1)
    replica.record.prefill_tokens_per_s = 1e9
    assert replica.presence is not None
    await replica.presence.beat()
    await until(lambda: router.deployment.replicas.records[0].prefill_tokens_per_s == 1e9)
    status, body, headers = await post(router, headers={"x-octavo-ttft-ms": "300"})
    assert (status, headers["x-octavo-reason"]) == (503, "deadline")
    assert "waited 0." in body["error"]["message"]
    assert len(replica.seen.requests) == 2
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_an_answer_that_is_not_complete_in_time_is_ended_at_the_replica_too(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    router = await cluster.router(1, tenants=tenants(tmp_path, {"name": "acme"}))
    replica.behaviour.chunk_s = 60
    async with client(router, "acme") as api:
        limited = {"x-octavo-timeout-ms": "400"}
        stream = await api.completions.create(
            model="fake", prompt=PROMPT, stream=True, extra_headers=limited
        )
        assert (await anext(stream)).choices[0].text == "w0 "
        with pytest.raises(openai.APIError, match="x-octavo-timeout-ms"):
            await anext(stream)
    await until(lambda: replica.seen.num_open == 0)
    replica.behaviour.is_stalled = True
    status, body, headers = await post(
        router, headers={**limited, "authorization": "Bearer acme-key"}
    )
    assert (status, headers["x-octavo-reason"]) == (504, "timeout")
    assert body["error"]["type"] == "timeout_error"
    await until(lambda: len(usage_records(cluster)) == 2)
    assert [(each.status, each.output_tokens) for each in usage_records(cluster)] == [
        (504, 1),
        (504, 0),
    ]


async def test_an_alias_leads_to_a_model_that_can_answer(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replica = await cluster.replica("a")
    aliases = {
        "gpt": [{"model": "fake", "weight": 1}, {"model": "gone", "weight": 99}],
        "off": "gone",
    }
    path = tenants(tmp_path, {"name": "acme", "models": ["gpt", "off"]}, aliases=aliases)
    router = await cluster.router(1, tenants=path)
    async with client(router, "acme") as api:
        assert [each.id async for each in api.models.list()] == ["gpt"]
        answer = await api.completions.create(model="gpt", prompt="hi")
        assert (answer.model, answer.choices[0].text) == ("fake", words(8))
        with pytest.raises(openai.NotFoundError, match="'gone'"):
            await api.completions.create(model="off", prompt="hi")
        with pytest.raises(openai.PermissionDeniedError, match="'fake'; name one of gpt, off"):
            await api.completions.create(model="fake", prompt="hi")
    assert replica.seen.requests[0].headers["x-octavo-set-model"] == "fake"
    await until(lambda: len(usage_records(cluster)) == 1)
    assert usage_records(cluster)[0].model == "fake"


async def test_a_request_changes_its_routing_only_with_the_right_to(
    cluster: RouterCluster, tmp_path: Path
) -> None:
    replicas = [await cluster.replica(name) for name in ("a", "b")]
    path = tenants(
        tmp_path,
        {"name": "plain"},
        {
            "name": "trusted",
            "priority": {"default": 0, "highest": -2},
            "may_override": ["priority", "policy", "replica"],
        },
    )
    router = await cluster.router(2, tenants=path)

    async def try_as(tenant: str, **headers: str) -> tuple[int, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["authorization"] = f"Bearer {tenant}-key"
        status, body, answered = await post(router, headers=named)
        return status, str(answered["x-octavo-route"] if status == 200 else body["error"])

    for headers in (
        {"x_octavo_priority": "-1"},
        {"x_vllm_priority": "-1"},
        {"x_octavo_policy": "round-robin"},
        {"x_octavo_replica": "a"},
    ):
        status, said = await try_as("plain", **headers)
        assert status == 403, headers
        assert "tenant plain may not set" in said
    for name in "abab":
        status, route = await try_as("trusted", x_octavo_replica=name)
        assert (status, route[:10]) == (200, f"replica={name};")
    for _ in range(2):
        status, route = await try_as("trusted", x_octavo_policy="round-robin")
        assert (status, "policy=round-robin" in route) == (200, True)
    assert (await try_as("trusted", x_octavo_policy="best"))[0] == 400
    assert (await try_as("trusted", x_octavo_priority="soon"))[0] == 400
    assert (await try_as("trusted", x_octavo_replica="c"))[0] == 503
    assert (await try_as("trusted", x_octavo_priority="-3"))[0] == 403
    assert (await try_as("trusted", x_octavo_priority="-2"))[0] == 200
    sent = [each for replica in replicas for each in replica.seen.requests]
    assert "-2" in {each.headers["x-octavo-set-priority"] for each in sent}

    for tenant, expected in (("plain", 403), ("trusted", 200)):
        key = {"authorization": f"Bearer {tenant}-key"}
        body = {"model": "fake", "prompt": PROMPT}
        async with router.client.post("/debug/route", json=body, headers=key) as response:
            assert response.status == expected


async def test_without_tenants_clients_may_say_where_their_requests_go(
    cluster: RouterCluster,
) -> None:
    await cluster.replica("a")
    await cluster.replica("b")
    router = await cluster.router(2)
    for name in "ab":
        status, _, headers = await post(router, headers={"x-octavo-replica": name})
        assert (status, headers["x-octavo-route"][:10]) == (200, f"replica={name};")
