"""The routes that router and replicas both have, as /openapi.json shows them."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from octavo_protocol.anthropic import CountTokensRequest, MessagesRequest
from octavo_protocol.anthropic.answers import AnthropicMessage, ErrorEvent, TokenCount
from octavo_protocol.cohere import EmbedAnswer, EmbedRequest
from octavo_protocol.openai import (
    ChatCompletionRequest,
    ClassifyRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
    TokenizeRequest,
)
from octavo_protocol.openai.answers import (
    ChatCompletion,
    Completion,
    DetokenizeResponse,
    ModelList,
    TokenizeResponse,
)
from octavo_protocol.openai.pooling_answers import (
    Classes,
    Embeddings,
    Pooled,
    Reranked,
    Scores,
)
from octavo_protocol.openai.response_answers import Response
from octavo_protocol.openai.responses import ResponsesRequest
from octavo_protocol.openapi import EVENTS, TEXT, ApiRoute, Content, Operation


class Readiness(msgspec.Struct):
    """stage: what the server is doing; "ready" when it may take traffic."""

    status: str
    stage: str


class Version(msgspec.Struct):
    version: str


_STREAM = Content(media_type=EVENTS)
_OCTETS = Content(media_type="application/octet-stream")
_ANTHROPIC_ERRORS = {status: (Content(ErrorEvent),) for status in (400, 401, 404, 413, 500, 503)}
SCORE_PATHS = ("/score", "/v1/score")
RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
_SCORE = Operation(
    "How well texts fit together.", (ScoreRequest,), {200: (Content(Scores),)}, errors=(404,)
)
_RERANK = Operation(
    "Documents in the order of their fit to a query.",
    (RerankRequest,),
    {200: (Content(Reranked),)},
    errors=(404,),
)

POST: Mapping[str, Operation] = {
    "/v1/chat/completions": Operation(
        "Answer a conversation.",
        (ChatCompletionRequest,),
        {200: (Content(ChatCompletion), _STREAM)},
        errors=(404,),
    ),
    "/v1/completions": Operation(
        "Continue a text.",
        (CompletionRequest,),
        {200: (Content(Completion), _STREAM)},
        errors=(404,),
    ),
    "/v1/responses": Operation(
        "Answer a conversation, with items and named events.",
        (ResponsesRequest,),
        {200: (Content(Response), _STREAM)},
        errors=(404,),
    ),
    "/v1/messages": Operation(
        "Answer a conversation, as Anthropic's API does.",
        (MessagesRequest,),
        {200: (Content(AnthropicMessage), _STREAM), **_ANTHROPIC_ERRORS},
    ),
    "/v1/messages/count_tokens": Operation(
        "How many tokens the prompt of a conversation has.",
        (CountTokensRequest,),
        {200: (Content(TokenCount),), **_ANTHROPIC_ERRORS},
    ),
    "/v1/embeddings": Operation(
        "The vector of each input.",
        (EmbeddingRequest,),
        {200: (Content(Embeddings), _OCTETS)},
        errors=(404,),
    ),
    "/v2/embed": Operation(
        "The vector of each text, as Cohere's API has it.",
        (EmbedRequest,),
        {200: (Content(EmbedAnswer),)},
        errors=(404,),
    ),
    "/pooling": Operation(
        "What the model makes of each input: vectors, classes, one of them for each token.",
        (PoolRequest,),
        {200: (Content(Pooled), _OCTETS)},
        errors=(404,),
    ),
    "/classify": Operation(
        "The class of each input.", (ClassifyRequest,), {200: (Content(Classes),)}, errors=(404,)
    ),
    **dict.fromkeys(SCORE_PATHS, _SCORE),
    **dict.fromkeys(RERANK_PATHS, _RERANK),
    "/tokenize": Operation(
        "Text to tokens.", (TokenizeRequest,), {200: (Content(TokenizeResponse),)}, errors=(404,)
    ),
    "/detokenize": Operation(
        "Tokens to text.",
        (DetokenizeRequest,),
        {200: (Content(DetokenizeResponse),)},
        errors=(404,),
    ),
}
GET: Mapping[str, Operation] = {
    "/v1/models": Operation("The served models.", answers={200: (Content(ModelList),)}),
    "/health": Operation("Does the server live?", answers={200: (), 503: ()}),
    "/ready": Operation(
        "May traffic come?", answers={200: (Content(Readiness),), 503: (Content(Readiness),)}
    ),
    "/version": Operation("Octavo's version.", answers={200: (Content(Version),)}),
    "/metrics": Operation("Prometheus metrics.", answers={200: (Content(media_type=TEXT),)}),
}


def get(path: str, endpoint: Callable[..., Any]) -> ApiRoute:
    """The GET route at `path`, one of those above."""
    return ApiRoute(path, endpoint, GET[path], "GET")


def post(path: str, endpoint: Callable[..., Any]) -> ApiRoute:
    """The POST route at `path`, one of those above."""
    return ApiRoute(path, endpoint, POST[path], "POST")
