"""Answers of the pooling routes. What is long is encoded item by item: see `pieces`."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

Numbers = list[float | list[float]]
_DATA = b'"data":['


class PoolingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct):
    """embedding: numbers, one list of them for each token, or their bytes in base64."""

    index: int
    embedding: Numbers | str
    object: Literal["embedding"] = "embedding"


class PoolItem(msgspec.Struct):
    index: int
    data: Numbers | str
    object: Literal["pooling"] = "pooling"


class ClassifyItem(msgspec.Struct):
    """label: of the likeliest class, where the model names its classes."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ScoreResult(msgspec.Struct):
    index: int
    score: float
    object: Literal["score"] = "score"


class Document(msgspec.Struct):
    text: str


class RerankResult(msgspec.Struct, omit_defaults=True):
    """index: of the document in the request."""

    index: int
    relevance_score: float
    document: Document | None = None


class _Answer(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int = msgspec.field(default_factory=lambda: int(time.time()))
    model: str


class Embeddings(_Answer, kw_only=True):
    data: list[EmbeddingItem]
    usage: PoolingUsage


class Pooled(_Answer, kw_only=True):
    data: list[PoolItem]
    usage: PoolingUsage


class Classes(_Answer, kw_only=True):
    data: list[ClassifyItem]
    usage: PoolingUsage


class Scores(_Answer, kw_only=True):
    data: list[ScoreResult]
    usage: PoolingUsage


class Reranked(msgspec.Struct, kw_only=True):
    """results: the best first."""

    id: str
    model: str
    usage: PoolingUsage
    results: list[RerankResult]


def pieces(answer: Any, items: Iterable[bytes]) -> Iterator[bytes]:
    """The JSON of `answer`, whose `data` is empty, with the encoded `items` as its data."""
    before, _, after = msgspec.json.encode(answer).partition(_DATA)
    separator = before + _DATA
    for item in items:
        yield separator + item
        separator = b","
    yield after if separator == b"," else separator + after
