"""/score and /rerank of a replica, with each kind of model that can score pairs."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.fakes.fake_pooling import (
    CLASSIFIER,
    EMBEDDER,
    LATE_INTERACTION,
    RERANKER,
    fake_tensor,
)
from tests.unit.server.conftest import Replica, running_replica
from tokenizers import processors

from octavo_protocol.pooling import PoolingParams
from octavo_runtime.server.options import ApiOptions

QUERY = "red"
DOCUMENTS = ["blue sea", "green tree", "red rose"]
PAIR_TEMPLATE = (
    "{% set q = messages | selectattr('role', 'eq', 'query') | first %}"
    "{% set d = messages | selectattr('role', 'eq', 'document') | first %}"
    "{{ instruction | default('fit') }}: {{ q.content }}|{{ d.content }}"
)


@pytest.fixture
async def reranker() -> AsyncIterator[Replica]:
    async with running_replica(pooling=RERANKER) as replica:
        yield replica


async def post(replica: Replica, path: str, **body: Any) -> Any:
    answer = await replica.http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refusal(replica: Replica, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = await replica.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def pair_score(replica: Replica, query: str, document: str, **params: Any) -> float:
    """As a cross-encoder without special tokens gives it."""
    token_ids = replica.llm.tokenizer.encode(query + document)
    return float(fake_tensor(token_ids, PoolingParams(task="classify", **params), RERANKER)[0])


def vectors(replica: Replica, text: str, task: str) -> Any:
    token_ids = replica.llm.tokenizer.encode(text)
    return fake_tensor(token_ids, PoolingParams(task=task), EMBEDDER)


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
async def test_one_query_is_scored_with_every_document(
    reranker: Replica, path: str, names: tuple[str, str]
) -> None:
    answer = await post(reranker, path, **{names[0]: QUERY, names[1]: DOCUMENTS})

    assert answer["id"].startswith("score-")
    assert (answer["object"], answer["model"]) == ("list", "first")
    assert answer["data"] == [
        {"index": i, "object": "score", "score": pair_score(reranker, QUERY, document)}
        for i, document in enumerate(DOCUMENTS)
    ]
    num_tokens = sum(len(QUERY + document) for document in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


async def test_as_many_queries_as_documents_are_scored_in_pairs(reranker: Replica) -> None:
    answer = await post(reranker, "/score", text_1=DOCUMENTS, text_2=DOCUMENTS[::-1])

    scores = [item["score"] for item in answer["data"]]
    pairs = zip(DOCUMENTS, DOCUMENTS[::-1], strict=True)
    assert scores == [pair_score(reranker, *pair) for pair in pairs]


async def test_the_texts_of_a_pair_have_token_types(reranker: Replica) -> None:
    backend = reranker.llm.tokenizer.backend
    backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")

    await post(reranker, "/score", queries="ab", documents="c")

    [request] = reranker.llm.pooled
    assert request.token_type_ids == [0, 0, 1]


async def test_each_text_has_a_limit_of_its_own(reranker: Replica) -> None:
    answer = await post(
        reranker,
        "/score",
        queries="abcdef",
        documents="ghijkl",
        max_tokens_per_query=2,
        max_tokens_per_doc=3,
    )

    assert answer["data"][0]["score"] == pair_score(reranker, "ab", "ghi")


async def test_without_activation_scores_are_logits(reranker: Replica) -> None:
    answer = await post(reranker, "/score", queries="a", documents="b", use_activation=False)

    expected = pair_score(reranker, "a", "b", use_activation=False)
    assert answer["data"][0]["score"] == expected


async def test_an_embedder_scores_by_cosine() -> None:
    async with running_replica(pooling=EMBEDDER) as replica:
        answer = await post(replica, "/score", queries=QUERY, documents=DOCUMENTS)

        query = vectors(replica, QUERY, "embed")
        for item, document in zip(answer["data"], DOCUMENTS, strict=True):
            cosine = float(query @ vectors(replica, document, "embed"))
            assert item["score"] == pytest.approx(cosine, abs=1e-6)
        assert len(replica.llm.pooled) == 4  # the query once


async def test_late_interaction_scores_by_the_best_match_of_each_token() -> None:
    async with running_replica(pooling=LATE_INTERACTION) as replica:
        answer = await post(replica, "/score", queries=QUERY, documents=DOCUMENTS)

        query = vectors(replica, QUERY, "token_embed")
        for item, document in zip(answer["data"], DOCUMENTS, strict=True):
            matches = query @ vectors(replica, document, "token_embed").T
            assert item["score"] == pytest.approx(float(np.sum(matches.max(1))), abs=1e-5)


async def test_limits_hold_for_vectors_too() -> None:
    async with running_replica(pooling=EMBEDDER) as replica:
        limits = {"max_tokens_per_query": 2, "max_tokens_per_doc": 3}
        await post(replica, "/score", queries="abcdef", documents="ghijkl", **limits)

        prompts = [request.prompt_token_ids for request in replica.llm.pooled]
        assert prompts == [replica.llm.tokenizer.encode(text) for text in ("ab", "ghi")]


# -- ranks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_come_in_the_order_of_their_scores(reranker: Replica, path: str) -> None:
    answer = await post(reranker, path, query=QUERY, documents=DOCUMENTS)

    scores = [pair_score(reranker, QUERY, document) for document in DOCUMENTS]
    best = sorted(range(3), key=scores.__getitem__, reverse=True)
    assert answer["results"] == [
        {"index": i, "relevance_score": scores[i], "document": {"text": DOCUMENTS[i]}} for i in best
    ]
    assert answer["model"] == "first"
    assert answer["usage"]["total_tokens"] == sum(len(QUERY + each) for each in DOCUMENTS)


async def test_the_best_n_come_without_their_text_where_it_is_not_wanted(
    reranker: Replica,
) -> None:
    whole = await post(reranker, "/rerank", query=QUERY, documents=DOCUMENTS)

    best = await post(
        reranker, "/rerank", query=QUERY, documents=DOCUMENTS, top_n=2, return_documents=False
    )

    expected = [{k: v for k, v in each.items() if k != "document"} for each in whole["results"][:2]]
    assert best["results"] == expected


# -- templates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", [None, "same colour"])
async def test_a_template_makes_one_prompt_of_query_document_and_instruction(
    instruction: str | None,
) -> None:
    options = ApiOptions(trust_request_chat_template=True)
    async with running_replica(options, pooling=RERANKER) as replica:
        body = {"chat_template": PAIR_TEMPLATE, "instruction": instruction}
        await post(replica, "/score", queries="a", documents="b", **body)

        [request] = replica.llm.pooled
        expected = f"{instruction or 'fit'}: a|b"
        assert request.prompt_token_ids == replica.llm.tokenizer.encode(expected)


async def test_the_models_own_template_for_pairs_is_used(reranker: Replica) -> None:
    reranker.llm.tokenizer.bundle.chat_template = PAIR_TEMPLATE

    await post(
        reranker, "/score", queries="a", documents="b", chat_template_kwargs={"instruction": "x"}
    )

    [request] = reranker.llm.pooled
    assert request.prompt_token_ids == reranker.llm.tokenizer.encode("x: a|b")


async def test_without_a_template_an_instruction_is_refused(reranker: Replica) -> None:
    error = await refusal(reranker, "/score", queries="a", documents="b", instruction="x")

    assert (error["param"], "--chat-template" in error["message"]) == ("instruction", True)


async def test_a_model_that_compares_vectors_refuses_an_instruction() -> None:
    async with running_replica(pooling=EMBEDDER) as replica:
        error = await refusal(replica, "/score", queries="a", documents="b", instruction="x")

        assert "write it into the query" in error["message"]


# -- bad input -------------------------------------------------------------------------------------


async def test_the_document_that_is_too_long_is_named(reranker: Replica) -> None:
    error = await refusal(reranker, "/score", queries="a", documents=["b", "x" * 64])

    assert error["message"].startswith("pair[1]: the prompt has 65 tokens")


@pytest.mark.parametrize("path", ["/score", "/rerank"])
async def test_a_classifier_of_several_classes_scores_no_pairs(path: str) -> None:
    body: dict[str, Any] = {"query": "a", "documents": ["b"]}
    if path == "/score":
        body = {"queries": "a", "documents": "b"}
    async with running_replica(pooling=CLASSIFIER) as replica:
        error = await refusal(replica, path, **body)

        assert "it has 2 classes" in error["message"]


async def test_a_generating_model_scores_no_pairs(replica: Replica) -> None:
    error = await refusal(replica, "/rerank", 404, query="a", documents=["b"])

    assert "it can generate: this route needs a model that embeds" in error["message"]
