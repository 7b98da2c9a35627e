"""An embedding model through `octavo up`: router and two replicas, one of which is killed."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from openai import AsyncOpenAI

from octavo import LLM, PoolingParams
from octavo_protocol.errors import GenerationError, ValidationError
from tests.e2e.platform import Platform
from tests.fakes.tiny_encoder import WORDS, token_ids, write_tiny_encoder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

MANIFEST = """\
apiVersion: octavo.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: tiny-bert
spec:
  model:
    source: file://{folder}
  replicas: 2
  engine:
    dtype: float32
"""
RNG = np.random.default_rng(5)
REQUESTS = [
    [" ".join(RNG.choice(WORDS, RNG.integers(1, 60))) for _ in range(500)] for _ in range(16)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="module")
def platform(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(model, tmp_path_factory.mktemp("platform"), MANIFEST) as running:
        yield running


async def embedded(platform: Platform, requests: list[list[str]]) -> list[np.ndarray]:
    """The vectors of each request's texts, eight requests at a time."""
    limit = asyncio.Semaphore(8)
    async with AsyncOpenAI(
        base_url=f"{platform.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:

        async def one(texts: list[str]) -> np.ndarray:
            async with limit:
                answer = await client.embeddings.create(model="tiny-bert", input=texts)
            assert [item.index for item in answer.data] == list(range(len(texts)))
            return np.array([item.embedding for item in answer.data], np.float32)

        return await asyncio.gather(*(one(texts) for texts in requests))


def reference(model: Path, texts: list[str]) -> np.ndarray:
    """As transformers computes them, one by one: the normalised state of [CLS]."""
    from transformers import BertModel

    bert = BertModel.from_pretrained(model, add_pooling_layer=False)
    rows = []
    for text in texts:
        with torch.no_grad():
            state = bert(torch.tensor([token_ids(text)])).last_hidden_state[0, 0]
        rows.append((state / state.norm()).numpy())
    return np.stack(rows)


async def test_embeddings_through_the_router_are_those_of_transformers(
    platform: Platform, model: Path
) -> None:
    [vectors] = await embedded(platform, [REQUESTS[0][:100]])

    assert np.allclose(vectors, reference(model, REQUESTS[0][:100]), atol=1e-5)


async def test_a_killed_replica_costs_no_embedding(platform: Platform, model: Path) -> None:
    decisions = platform.metric("octavo_router_decision_seconds_count")
    running = asyncio.create_task(embedded(platform, REQUESTS))
    await asyncio.to_thread(
        platform.wait_until,
        lambda: platform.metric("octavo_router_decision_seconds_count") >= decisions + 8,
        60,
    )

    platform.kill_replica()

    answers = await running
    assert platform.metric("octavo_router_retries_total") > 0
    for texts, vectors in zip(REQUESTS, answers, strict=True):
        assert len(vectors) == len(texts)
        assert np.allclose(vectors[:5], reference(model, texts[:5]), atol=1e-5)
    await asyncio.to_thread(platform.wait_until, platform.is_ready, 60)


def test_a_cluster_pools_as_an_llm_in_process_does(platform: Platform, model: Path) -> None:
    texts = REQUESTS[0][:4]
    with LLM(str(model), dtype="float32") as here, LLM("tiny-bert", cluster=platform.url) as there:
        ours, theirs = (llm.embed(texts, use_tqdm=False) for llm in (here, there))
        assert [type(each) for each in theirs] == [type(each) for each in ours]
        for one, other in zip(ours, theirs, strict=True):
            assert np.allclose(one.outputs.embedding, other.outputs.embedding, atol=1e-5)
        ours, theirs = (llm.score(texts[0], texts[1:], use_tqdm=False) for llm in (here, there))
        assert [each.outputs.score for each in theirs] == pytest.approx(
            [each.outputs.score for each in ours], abs=1e-5
        )
        ours, theirs = (
            llm.encode(texts, pooling_task="token_embed", use_tqdm=False) for llm in (here, there)
        )
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.outputs.data, other.outputs.data, atol=1e-5, rtol=1e-4)
        with pytest.raises(GenerationError, match="request 0"):
            there.classify(texts[:1], use_tqdm=False)
        with pytest.raises(ValidationError, match="data_2 must not be empty"):
            there.score("a", [])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    return write_tiny_encoder(folder, "BertForSequenceClassification", num_labels=3)


def test_a_cluster_classifies_as_an_llm_in_process_does(classifier: Path, tmp_path: Path) -> None:
    texts = REQUESTS[1][:5]
    manifest = MANIFEST.replace("replicas: 2", "replicas: 1")
    with (
        Platform(classifier, tmp_path, manifest, num_replicas=1) as platform,
        LLM(str(classifier), dtype="float32") as here,
        LLM("tiny-bert", cluster=platform.url) as there,
    ):
        for params in (None, PoolingParams(use_activation=False)):
            ours, theirs = (
                llm.classify(texts, pooling_params=params, use_tqdm=False) for llm in (here, there)
            )
            assert [type(each) for each in theirs] == [type(each) for each in ours]
            assert [each.outputs.num_classes for each in theirs] == [3] * len(texts)
            assert np.allclose(
                [each.outputs.probs for each in theirs],
                [each.outputs.probs for each in ours],
                atol=1e-5,
            )
        assert np.ptp([each.outputs.probs for each in theirs]) > 0.1, "all alike says nothing"


def test_the_router_says_what_the_model_cannot(platform: Platform) -> None:
    answer = httpx.post(f"{platform.url}/v1/completions", json={"prompt": "a"}, timeout=60)

    assert answer.status_code == 404
    assert "use /v1/embeddings" in answer.json()["error"]["message"]
