"""Requests to pooling models, and about how many tokens they are: what replicas are chosen by.

There is nothing to look up for them: an encoder has no prefix cache.
"""

from octavo_protocol import operations
from octavo_protocol.cohere import EmbedRequest
from octavo_protocol.openai import (
    ClassifyRequest,
    EmbeddingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo_protocol.openai.pooling import Input, InputRequest
from octavo_router.decisions import PromptKey

_CHARS_PER_TOKEN = 4
_TOKENS_PER_PROMPT = 2  # special ones

PoolingBody = (
    EmbeddingRequest | PoolRequest | ClassifyRequest | ScoreRequest | RerankRequest | EmbedRequest
)
POOLING: dict[str, type[PoolingBody]] = {
    "/v1/embeddings": EmbeddingRequest,
    "/v2/embed": EmbedRequest,
    "/pooling": PoolRequest,
    "/classify": ClassifyRequest,
    **dict.fromkeys(operations.SCORE_PATHS, ScoreRequest),
    **dict.fromkeys(operations.RERANK_PATHS, RerankRequest),
}


def pooling_key(body: PoolingBody) -> PromptKey:
    """What the choice of a replica goes by: the number of tokens, roughly."""
    if isinstance(body, InputRequest):
        return PromptKey(num_tokens=sum(map(_num_tokens, body.inputs())))
    if isinstance(body, EmbedRequest):
        return PromptKey(num_tokens=sum(map(_num_tokens, body.given())))
    queries, documents = body.sides()
    num_repeats = len(documents) // len(queries)  # a cross-encoder reads the query every time
    num_chars = num_repeats * sum(map(len, queries)) + sum(map(len, documents))
    return PromptKey(num_tokens=num_chars // _CHARS_PER_TOKEN + _TOKENS_PER_PROMPT * len(documents))


def _num_tokens(given: Input) -> int:
    if isinstance(given, str):
        return len(given) // _CHARS_PER_TOKEN + _TOKENS_PER_PROMPT
    tokens = [each for each in given if isinstance(each, int)]
    messages = [each for each in given if not isinstance(each, int)]
    return len(tokens) + sum(len(each.text()) for each in messages) // _CHARS_PER_TOKEN
