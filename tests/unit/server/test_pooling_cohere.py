"""POST /v2/embed of a replica, as Cohere's clients send it."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.fakes.fake_pooling import CLASSIFIER, EMBEDDER, fake_tensor
from tests.unit.server.conftest import Replica, running_replica

from octavo_protocol.pooling import PoolingParams

PROMPTED = msgspec.structs.replace(EMBEDDER, prompts={"query": "Q: ", "clustering": "C: "})


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with running_replica(pooling=PROMPTED) as replica:
        yield replica


async def post(replica: Replica, status: int = 200, **body: Any) -> Any:
    answer = await replica.http.post("/v2/embed", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def vector(replica: Replica, text: str, **params: Any) -> Any:
    token_ids = replica.llm.tokenizer.encode(text)
    return fake_tensor(token_ids, PoolingParams(task="embed", **params), EMBEDDER)


async def test_vectors_come_by_type(replica: Replica) -> None:
    kinds = ["float", "binary", "ubinary", "base64"]

    answer = await post(replica, model="first", texts=["red", "blue"], embedding_types=kinds)

    vectors = np.stack([vector(replica, "red"), vector(replica, "blue")])
    bits = np.packbits(vectors > 0, axis=1)
    assert answer["embeddings"] == {
        "float": vectors.tolist(),
        "ubinary": bits.tolist(),
        "binary": (bits.astype(int) - 128).tolist(),
        "base64": [base64.b64encode(each.tobytes()).decode() for each in vectors],
    }
    assert answer["texts"] == ["red", "blue"]
    assert answer["meta"] == {"billed_units": {"input_tokens": 7}, "api_version": {"version": "2"}}
    assert answer["response_type"] == "embeddings_by_type"


async def test_floats_of_texts_in_parts_are_the_default(replica: Replica) -> None:
    parts = {"content": [{"type": "text", "text": "red"}]}

    answer = await post(replica, inputs=[parts], output_dimension=4)

    assert answer["embeddings"] == {"float": [vector(replica, "red", dimensions=4).tolist()]}


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [("search_query", "Q: "), ("clustering", "C: "), ("search_document", "")],
)
async def test_the_models_prompt_for_the_input_goes_before_the_text(
    replica: Replica, input_type: str, prompt: str
) -> None:
    answer = await post(replica, texts=["red"], input_type=input_type)

    assert answer["embeddings"]["float"] == [vector(replica, prompt + "red").tolist()]
    assert answer["texts"] == ["red"]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"max_tokens": 3}, "abc"),
        ({"max_tokens": 3, "truncate": "START"}, "def"),
        ({}, "abcdef"),
    ],
)
async def test_long_texts_are_cut(replica: Replica, fields: dict[str, Any], kept: str) -> None:
    answer = await post(replica, texts=["abcdef"], **fields)

    assert answer["embeddings"]["float"] == [vector(replica, kept).tolist()]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "give either texts or inputs"),
        ({"texts": []}, "texts cannot be empty"),
        ({"texts": ["a"], "embedding_types": ["int8"]}, "embedding_types.0"),
        ({"texts": ["a"], "images": ["data:"]}, "images"),
        ({"texts": ["a"], "input_type": "x"}, "input_type"),
        ({"texts": ["x" * 65], "truncate": "NONE"}, "the prompt has 65 tokens"),
        ({"texts": ["a"], "dimensions": 4}, "did you mean output_dimension?"),
    ],
)
async def test_bad_input_is_named(replica: Replica, body: dict[str, Any], message: str) -> None:
    assert message in (await post(replica, 400, **body))["error"]["message"]


async def test_a_classifier_has_no_vectors() -> None:
    async with running_replica(pooling=CLASSIFIER) as replica:
        error = (await post(replica, 404, texts=["a"]))["error"]

        assert "cannot embed, it can classify or token_classify" in error["message"]
