"""Pooling through a router over replicas with a fake engine, with openai's client as judge."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.fakes.fake_pooling import CLASSIFIER, EMBEDDER, fake_tensor
from tests.fakes.router_cluster import RunningRouter, running_router, until
from tests.unit.server.conftest import Replica, running_replica

from octavo_protocol.pooling import PoolingParams

pytestmark = pytest.mark.integration


@dataclass
class Fleet:
    """Replicas of one embedder behind a router. http: asks the router."""

    replicas: list[Replica]
    router: RunningRouter
    http: httpx.AsyncClient

    @property
    def busy(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.llm.num_unfinished]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        replicas = [
            await stack.enter_async_context(running_replica(pooling=EMBEDDER)) for _ in range(2)
        ]
        urls = tuple(replica.url for replica in replicas)
        router = await stack.enter_async_context(running_router(replica_urls=urls))
        client = httpx.AsyncClient(base_url=router.url, trust_env=False, timeout=60)
        http = await stack.enter_async_context(client)
        await until(lambda: len(router.deployment.replicas.usable(None)) == 2)
        yield Fleet(replicas, router, http)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a", "bc"]}),
        ("/v1/embeddings", {"input": ["a", "bc"], "encoding_format": "base64"}),
        ("/pooling", {"input": "a", "task": "token_embed"}),
        ("/score", {"queries": "a", "documents": ["b", "c"]}),
        ("/v1/score", {"data_1": "a", "data_2": "b"}),
        ("/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
        ("/v2/rerank", {"query": "a", "documents": ["b", "c"], "top_n": 1}),
        ("/v2/embed", {"texts": ["a"]}),
    ],
)
async def test_the_router_relays_what_a_replica_answers(
    fleet: Fleet, path: str, body: dict[str, Any]
) -> None:
    body |= {"model": "first", "request_id": "same"}
    direct = (await fleet.replicas[0].http.post(path, json=body)).json()

    answer = await fleet.http.post(path, json=body)

    assert answer.status_code == 200, answer.text
    assert "replica=" in answer.headers["x-octavo-route"]
    assert answer.json() | {"created": 0} == direct | {"created": 0}


async def test_bytes_come_with_what_describes_them(fleet: Fleet) -> None:
    body = {"input": ["a"] * 60, "encoding_format": "bytes"}

    direct = await fleet.replicas[0].http.post("/v1/embeddings", json=body)
    answer = await fleet.http.post("/v1/embeddings", json=body)

    assert answer.content == direct.content
    assert len(answer.headers["metadata"]) == len(direct.headers["metadata"])


async def test_the_client_gets_the_vectors_bit_for_bit(fleet: Fleet) -> None:
    async with (
        openai.DefaultAsyncHttpxClient(trust_env=False) as inner,
        openai.AsyncOpenAI(
            base_url=f"{fleet.router.url}/v1", api_key="none", http_client=inner
        ) as client,
    ):
        answer = await client.embeddings.create(model="first", input=[[1, 2, 3]])

    vector = fake_tensor([1, 2, 3], PoolingParams(task="embed"), EMBEDDER)
    assert np.asarray(answer.data[0].embedding, "<f4").tobytes() == vector.tobytes()


async def test_complaints_of_router_and_replica_reach_the_client(fleet: Fleet) -> None:
    async def refused(path: str, **body: Any) -> tuple[int, str]:
        answer = await fleet.http.post(path, json=body)
        return answer.status_code, answer.json()["error"]["message"]

    status, message = await refused("/v1/embeddings", input=["a", "x" * 65])
    assert (status, "input[1]: the prompt has 65 tokens" in message) == (400, True)
    status, message = await refused("/v1/embeddings", inputs=["a"])
    assert (status, "did you mean input?" in message) == (400, True)
    status, message = await refused("/classify", input="a")
    assert (status, "cannot classify" in message) == (404, True)
    status, message = await refused("/v1/embeddings", input="a", model="none")
    assert status == 404


async def test_requests_are_balanced_by_their_tokens(fleet: Fleet) -> None:
    """One large request outweighs several small ones: those go to the other replica."""
    for replica in fleet.replicas:
        replica.llm.gate.clear()
    large = asyncio.create_task(fleet.http.post("/v1/embeddings", json={"input": ["x" * 60] * 500}))
    await until(lambda: len(fleet.busy) == 1)
    [first] = fleet.busy

    small = [
        asyncio.create_task(fleet.http.post("/v1/embeddings", json={"input": "a"}))
        for _ in range(5)
    ]
    [other] = [replica for replica in fleet.replicas if replica is not first]
    await until(lambda: other.llm.num_unfinished == 5)

    for replica in fleet.replicas:
        replica.llm.gate.set()
    answers = await asyncio.gather(large, *small)
    assert {answer.status_code for answer in answers} == {200}


async def test_a_request_of_a_replica_that_dies_is_answered_by_another(fleet: Fleet) -> None:
    for replica in fleet.replicas:
        replica.llm.gate.clear()
    asked = asyncio.create_task(fleet.http.post("/v1/embeddings", json={"input": ["a", "b"]}))
    await until(lambda: len(fleet.busy) == 1)
    [dying] = fleet.busy

    for replica in fleet.replicas:
        replica.llm.gate.set() if replica is not dying else replica.llm.die()

    answer = await asked
    assert answer.status_code == 200
    assert "attempts=2" in answer.headers["x-octavo-route"]


async def test_a_client_that_leaves_ends_its_inputs_in_the_engine(fleet: Fleet) -> None:
    for replica in fleet.replicas:
        replica.llm.gate.clear()
    asked = asyncio.create_task(fleet.http.post("/v1/embeddings", json={"input": ["a"] * 100}))
    await until(lambda: len(fleet.busy) == 1)

    asked.cancel()

    await until(lambda: not fleet.busy)


async def test_a_deployment_that_classifies_is_relayed_too() -> None:
    async with (
        running_replica(pooling=CLASSIFIER) as replica,
        running_router(replica_urls=(replica.url,)) as router,
    ):
        await until(lambda: router.state.stage == "ready")
        async with router.client.post("/classify", json={"input": "a"}) as response:
            answer = await response.json()

    assert answer["data"][0]["label"] in CLASSIFIER.labels
