"""/v1/embeddings, /pooling and /classify of a replica, judged by the official client."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openai
import pytest
from tests.fakes.fake_pooling import CLASSIFIER, EMBEDDER, LATE_INTERACTION, fake_tensor
from tests.unit.server.conftest import Replica, running_replica

from octavo_protocol.pooling import PoolingParams
from octavo_runtime.engine.messages import PoolingInfo
from octavo_runtime.server.pooling import job


@pytest.fixture
async def embedder() -> AsyncIterator[Replica]:
    async with running_replica(pooling=EMBEDDER) as replica:
        yield replica


@pytest.fixture
async def classifier() -> AsyncIterator[Replica]:
    async with running_replica(pooling=CLASSIFIER) as replica:
        yield replica


def expected(replica: Replica, text: str, info: PoolingInfo = EMBEDDER, **params: Any) -> Any:
    """The tensor of a text."""
    params = {"task": info.task} | params
    token_ids = replica.llm.tokenizer.encode(text)
    return fake_tensor(token_ids, PoolingParams(**params), info)


def bits(values: Any) -> bytes:
    return np.asarray(values, "<f4").tobytes()


async def refusal(replica: Replica, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = await replica.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# -- /v1/embeddings --------------------------------------------------------------------------------


async def test_the_client_gets_the_vectors_bit_for_bit(embedder: Replica) -> None:
    texts = ["red", "green and blue"]

    answer = await embedder.client.embeddings.create(model="first", input=texts)

    assert answer.object == "list"
    assert answer.model == "first"
    assert answer.to_dict()["id"].startswith("embd-")  # type: ignore[attr-defined]
    assert [item.index for item in answer.data] == [0, 1]
    assert {item.object for item in answer.data} == {"embedding"}
    for text, item in zip(texts, answer.data, strict=True):
        assert bits(item.embedding) == bits(expected(embedder, text))
    num_tokens = sum(map(len, texts))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)


async def test_numbers_and_base64_are_the_same_vector(embedder: Replica) -> None:
    floats = await embedder.client.embeddings.create(
        model="first", input="red", encoding_format="float"
    )
    encoded = await embedder.http.post(
        "/v1/embeddings", json={"input": "red", "encoding_format": "base64"}
    )

    text = encoded.json()["data"][0]["embedding"]
    assert base64.b64decode(text) == bits(floats.data[0].embedding)


def test_the_blocking_client_works_too() -> None:
    async def serve() -> list[float]:
        async with running_replica(pooling=EMBEDDER) as replica:
            return await asyncio.to_thread(ask, replica.url)

    def ask(url: str) -> list[float]:
        inner = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=inner) as client:
            return client.embeddings.create(model="first", input=[1, 2]).data[0].embedding

    vector = fake_tensor([1, 2], PoolingParams(task="embed"), EMBEDDER)
    assert bits(asyncio.run(serve())) == bits(vector)


async def test_token_ids_and_conversations_are_inputs_too(embedder: Replica) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    bodies: list[dict[str, Any]] = [
        {"input": [[1, 2], [3]]},
        {"messages": chat},
        {"input": [chat, chat]},
        {"messages": chat, "add_generation_prompt": True, "chat_template_kwargs": {"a": 1}},
    ]
    for body in bodies:
        assert (await embedder.http.post("/v1/embeddings", json=body)).status_code == 200

    rendered = embedder.llm.tokenizer.encode("user: Hi\nassistant:")
    prompts = [request.prompt_token_ids for request in embedder.llm.pooled]
    assert prompts == [[1, 2], [3], *[rendered] * 4]


async def test_fewer_dimensions_are_those_that_the_model_knows(embedder: Replica) -> None:
    answer = await embedder.client.embeddings.create(model="first", input="red", dimensions=4)

    assert bits(answer.data[0].embedding) == bits(expected(embedder, "red", dimensions=4))
    error = await refusal(embedder, "/v1/embeddings", input="red", dimensions=5)
    assert error["param"] == "dimensions"
    assert "one of 4, 8" in error["message"]


async def test_a_model_of_token_vectors_answers_with_matrices() -> None:
    async with running_replica(pooling=LATE_INTERACTION) as replica:
        answer = await replica.http.post("/v1/embeddings", json={"input": "red"})

        [item] = answer.json()["data"]
        assert bits(item["embedding"]) == bits(expected(replica, "red", LATE_INTERACTION))


@pytest.mark.parametrize("side", ["left", "right"])
async def test_long_texts_are_truncated_where_it_is_asked(embedder: Replica, side: str) -> None:
    body = {"input": "abcdef", "truncate_prompt_tokens": 2, "truncation_side": side}

    answer = await embedder.http.post("/v1/embeddings", json=body)

    kept = "ef" if side == "left" else "ab"
    assert bits(answer.json()["data"][0]["embedding"]) == bits(expected(embedder, kept))
    assert answer.json()["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_minus_one_truncates_to_what_the_model_takes(embedder: Replica) -> None:
    body = {"input": "x" * 100, "truncate_prompt_tokens": -1}

    answer = await embedder.http.post("/v1/embeddings", json=body)

    assert answer.json()["usage"]["prompt_tokens"] == 64


async def test_priority_and_salt_go_to_the_engine(embedder: Replica) -> None:
    await embedder.http.post(
        "/v1/embeddings",
        json={"input": "a", "priority": 1, "cache_salt": "s", "request_id": "mine"},
        headers={"x-vllm-priority": "7"},
    )

    [request] = embedder.llm.pooled
    assert (request.priority, request.cache_salt) == (7, "s")
    assert request.request_id.startswith("mine-")


# -- formats ---------------------------------------------------------------------------------------


async def test_bytes_are_all_vectors_and_a_header_says_which(embedder: Replica) -> None:
    body = {"input": ["red", "blue"], "encoding_format": "bytes", "embed_dtype": "float16"}

    answer = await embedder.http.post("/v1/embeddings", json=body)

    assert answer.headers["content-type"] == "application/octet-stream"
    metadata = json.loads(answer.headers["metadata"])
    assert metadata["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert metadata["data"][1] == {
        "index": 1,
        "embed_dtype": "float16",
        "endianness": "native",
        "start": 16,
        "end": 32,
        "shape": [8],
    }
    both = np.stack([expected(embedder, "red"), expected(embedder, "blue")])
    assert answer.content == both.astype("<f2").tobytes()
    alone = await embedder.http.post(
        "/v1/embeddings", json=body | {"encoding_format": "bytes_only"}
    )
    assert alone.content == answer.content
    assert "metadata" not in alone.headers


async def test_more_vectors_than_a_header_describes_are_refused(embedder: Replica) -> None:
    error = await refusal(embedder, "/v1/embeddings", input=["a"] * 100, encoding_format="bytes")

    assert "use bytes_only" in error["message"]


# -- /pooling and /classify ------------------------------------------------------------------------


@pytest.mark.parametrize("task", [None, "embed", "token_embed"])
async def test_pooling_answers_the_tensor_of_the_task(embedder: Replica, task: str | None) -> None:
    answer = (await embedder.http.post("/pooling", json={"input": "red", "task": task})).json()

    assert answer["id"].startswith("pool-")
    [item] = answer["data"]
    assert (item["object"], item["index"]) == ("pooling", 0)
    assert bits(item["data"]) == bits(expected(embedder, "red", task=task or "embed"))


async def test_classify_answers_labels_and_probabilities(classifier: Replica) -> None:
    answer = (await classifier.http.post("/classify", json={"input": ["a", "bc"]})).json()

    assert answer["id"].startswith("classify-")
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    for item, text in zip(answer["data"], ["a", "bc"], strict=True):
        probs = expected(classifier, text, CLASSIFIER)
        assert bits(item["probs"]) == bits(probs)
        assert item["label"] == CLASSIFIER.labels[int(probs.argmax())]
        assert item["num_classes"] == 2


async def test_without_activation_classes_have_logits(classifier: Replica) -> None:
    answer = await classifier.http.post("/classify", json={"input": "a", "use_activation": False})

    [item] = answer.json()["data"]
    logits = expected(classifier, "a", CLASSIFIER, use_activation=False)
    assert bits(item["probs"]) == bits(logits)


# -- models and tasks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
    ],
)
async def test_a_pooling_model_says_what_it_can_instead_of_generating(
    embedder: Replica, path: str, body: Any
) -> None:
    error = await refusal(embedder, path, 404, **body)

    assert "does not generate, it can embed or token_embed: use /v1/embeddings" in error["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/classify"])
async def test_a_generating_model_says_what_the_route_needs(replica: Replica, path: str) -> None:
    error = await refusal(replica, path, 404, input="a")

    assert "it can generate: this route needs a" in error["message"]
    assert "--runner pooling" in error["message"]


async def test_a_task_that_the_model_cannot_is_not_found(classifier: Replica) -> None:
    error = await refusal(classifier, "/v1/embeddings", 404, input="a")
    assert "cannot embed or token_embed, it can classify or token_classify" in error["message"]
    error = await refusal(classifier, "/pooling", 404, input="a", task="embed")
    assert error["code"] == "task_not_supported"


async def test_an_unknown_model_is_not_found(embedder: Replica) -> None:
    assert (await refusal(embedder, "/pooling", 404, input="a", model="x"))["param"] == "model"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", ""], "input[2]: prompt cannot be empty"),
        (["a", "x" * 65], "input[1]: the prompt has 65 tokens; this model takes 64"),
        ("x" * 65, "the prompt has 65 tokens"),
        ([[1], [10_000]], "input[1]: "),
        ([[1], [-1]], "input[1]: "),
    ],
)
async def test_one_bad_input_fails_the_request_and_is_named(
    embedder: Replica, given: Any, message: str
) -> None:
    error = await refusal(embedder, "/v1/embeddings", input=given)

    assert error["message"].startswith(message)
    assert error["param"] == "input"
    await embedder.idle()


async def test_templates_need_the_operators_trust(embedder: Replica) -> None:
    error = await refusal(
        embedder, "/pooling", messages=[{"role": "user", "content": "a"}], chat_template="x"
    )

    assert "--trust-request-chat-template" in error["message"]


# -- many inputs -----------------------------------------------------------------------------------


async def test_thousands_of_inputs_go_to_the_engine_a_few_at_a_time(embedder: Replica) -> None:
    texts = [f"text {i}" for i in range(3000)]

    answer = await embedder.client.embeddings.create(model="first", input=texts)

    assert [item.index for item in answer.data] == list(range(3000))
    for i in (0, 1, 1500, 2999):
        assert bits(answer.data[i].embedding) == bits(expected(embedder, texts[i]))
    assert embedder.llm.most_at_once == 16  # twice what a step takes
    assert answer.usage.prompt_tokens == sum(map(len, texts))


async def test_a_client_that_leaves_ends_all_of_its_inputs(embedder: Replica) -> None:
    embedder.llm.gate.clear()
    asked = asyncio.create_task(embedder.http.post("/v1/embeddings", json={"input": ["a"] * 1000}))
    await embedder.until(lambda: embedder.llm.num_unfinished == 16)

    asked.cancel()

    await embedder.idle()
    assert len(embedder.llm.aborted) == 16
    assert len(embedder.llm.pooled) == 16
    assert embedder.state.num_generating == 0


async def test_an_engine_that_dies_fails_the_request_as_a_whole(embedder: Replica) -> None:
    embedder.llm.gate.clear()
    asked = asyncio.create_task(embedder.http.post("/v1/embeddings", json={"input": ["a"] * 9}))
    await embedder.until(lambda: embedder.llm.num_unfinished == 9)

    embedder.llm.die()

    answer = await asked
    assert answer.status_code == 500
    assert "engine process ended" in answer.json()["error"]["message"]


async def test_results_larger_than_the_limit_are_refused(
    embedder: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MAX_RESULT_BYTES", 100)

    error = await refusal(embedder, "/v1/embeddings", input=["a"] * 10)

    assert "more than 25 numbers: send the inputs in several requests" in error["message"]


async def test_the_metrics_count_prompts_and_tokens(embedder: Replica) -> None:
    await embedder.http.post("/v1/embeddings", json={"input": ["ab", "c"]})

    text = (await embedder.http.get("/metrics")).text
    assert "octavo_runtime_prompt_tokens_total 3.0" in text
    assert 'octavo_runtime_requests_total{finish_reason="stop"} 2.0' in text
    assert 'vllm:request_prompt_tokens_count{engine="0",model_name="first"} 2.0' in text
    assert 'vllm:e2e_request_latency_seconds_count{engine="0",model_name="first"} 2.0' in text


# -- /invocations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "body", "prefix"),
    [
        (EMBEDDER, {"input": "a"}, "embd-"),
        (EMBEDDER, {"messages": [{"role": "user", "content": "a"}]}, "embd-"),
        (EMBEDDER, {"input": "a", "task": "token_embed"}, "pool-"),
        (EMBEDDER, {"query": "a", "documents": ["b"]}, "score-"),
        (EMBEDDER, {"data_1": "a", "data_2": "b"}, "score-"),
        (CLASSIFIER, {"input": "a"}, "classify-"),
        (LATE_INTERACTION, {"input": "a"}, "pool-"),
    ],
)
async def test_invocations_are_told_apart_by_fields_and_model(
    info: PoolingInfo, body: dict[str, Any], prefix: str
) -> None:
    async with running_replica(pooling=info) as replica:
        answer = await replica.http.post("/invocations", json=body)

        assert answer.status_code == 200, answer.text
        assert answer.json()["id"].startswith(prefix)


@pytest.mark.parametrize("raw", [b"", b"[1]", b'{"input": }', b'{"inputs": "a"}', b'"\\ud800"'])
async def test_invocations_that_are_no_request_are_refused(embedder: Replica, raw: bytes) -> None:
    answer = await embedder.http.post("/invocations", content=raw)

    assert answer.status_code == 400
