"""Pooling calls as bodies of requests, and their answers as outputs. Pure."""

from collections.abc import Mapping
from typing import Any

from octavo.cluster.bodies import Body, prompt_fields, tokenization_fields
from octavo.score_inputs import text_of
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import ValidationError
from octavo_protocol.pooling import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)

Json = Mapping[str, Any]
EMBEDDINGS, CLASSIFY, SCORE, POOLING = "/v1/embeddings", "/classify", "/v1/score", "/pooling"
# Fields of `PoolingParams` that a request can say.
_SAID = frozenset({"use_activation", "dimensions", "task"})


def pooling_body(
    model: str, prompt: Any, params: PoolingParams | None, options: TokenizationOptions
) -> Body:
    """Of /v1/embeddings and /classify, with one input."""
    return {"model": model, **_fields(params), **prompt_fields("input", prompt, options)}


def task_body(
    model: str,
    prompt: Any,
    params: PoolingParams | None,
    options: TokenizationOptions,
    task: str | None,
) -> Body:
    """Of /pooling."""
    task = task or (None if params is None else params.task)
    body = pooling_body(model, prompt, params, options)
    return body if task is None else {**body, "task": task}


def score_body(
    model: str,
    pair: tuple[Any, Any],
    params: PoolingParams | None,
    options: TokenizationOptions,
    chat_template: str | None,
) -> Body:
    """Of /v1/score, with one pair."""
    texts = [
        options.text(text_of(name, data))
        for name, data in zip(("data_1", "data_2"), pair, strict=True)
    ]
    fields = _fields(params) | tokenization_fields(options)
    if chat_template is not None:
        fields["chat_template"] = chat_template
    return {"model": model, "queries": texts[0], "documents": [texts[1]], **fields}


def _fields(params: PoolingParams | None) -> Body:
    """Raises `ValidationError` for parameters that no request can say."""
    if params is None:
        return {}
    defaults = PoolingParams()
    for name in PoolingParams.__struct_fields__:
        if name not in _SAID and getattr(params, name) != getattr(defaults, name):
            raise ValidationError(
                f"{name} works in process only; for a cluster leave it out", parameter=name
            )
    given = {"use_activation": params.use_activation, "dimensions": params.dimensions}
    return {name: value for name, value in given.items() if value is not None}


def embedding(request_id: str, body: Json, answer: Json) -> EmbeddingRequestOutput:
    vector = EmbeddingOutput(answer["data"][0]["embedding"])
    return EmbeddingRequestOutput(request_id, vector, _token_ids(body))


def classification(request_id: str, body: Json, answer: Json) -> ClassificationRequestOutput:
    probs = ClassificationOutput(answer["data"][0]["probs"])
    return ClassificationRequestOutput(request_id, probs, _token_ids(body))


def scoring(request_id: str, body: Json, answer: Json) -> ScoringRequestOutput:
    return ScoringRequestOutput(request_id, ScoringOutput(answer["data"][0]["score"]), [])


def pooled(request_id: str, body: Json, answer: Json) -> PoolingRequestOutput[PoolingOutput]:
    import torch

    data = torch.tensor(answer["data"][0]["data"])
    return PoolingRequestOutput(request_id, PoolingOutput(data), _token_ids(body))


def _token_ids(body: Json) -> list[int]:
    """Of a prompt that came as such; what a text became is not told."""
    given = body["input"]
    return given if isinstance(given, list) else []
