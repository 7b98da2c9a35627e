"""POST /invocations: SageMaker's one route. The fields of the body, and what the model can, say
which request it is.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from octavo_protocol.openai import (
    ChatCompletionRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    PoolRequest,
    RerankRequest,
    ScoreRequest,
)
from octavo_protocol.openai.answers import ChatCompletion, Completion
from octavo_protocol.openai.pooling_answers import Classes, Embeddings, Pooled, Reranked, Scores
from octavo_protocol.openapi import EVENTS, ApiRoute, Content, Operation
from octavo_protocol.overrides import RequestOverrides
from octavo_runtime.engine.messages import PoolingInfo
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.state import ServerState

Answer = Callable[[Request, bytes, RequestOverrides], Awaitable[Any]]
# The first of these that the body of a pooling request has.
_BY_FIELD = {
    "query": "/rerank",
    "queries": "/score",
    "data_1": "/score",
    "text_1": "/score",
    "task": "/pooling",
}


def invocations_route(state: ServerState, answers: Mapping[str, Answer]) -> ApiRoute:
    """answers: what makes the answer of each other route from request and body."""

    async def invoke(request: Request) -> Any:
        pooling = state.check_accepts().pooling
        raw, overrides = await read_overridden(state, request)
        return await answers[_path(raw, pooling)](request, raw, overrides)

    return ApiRoute(
        "/invocations",
        invoke,
        Operation(
            "One of the routes that generate or pool, by the fields of the body (for SageMaker).",
            (
                *(ChatCompletionRequest, CompletionRequest, EmbeddingRequest, ClassifyRequest),
                *(RerankRequest, ScoreRequest, PoolRequest),
            ),
            {
                200: (
                    Content(
                        ChatCompletion
                        | Completion
                        | Embeddings
                        | Classes
                        | Pooled
                        | Scores
                        | Reranked
                    ),
                    Content(media_type=EVENTS),
                    Content(media_type="application/octet-stream"),
                )
            },
            errors=(404,),
        ),
        "POST",
    )


def _path(raw: bytes, pooling: PoolingInfo | None) -> str:
    """The route that `raw` is for; where it is none, one that will say what is wrong."""
    if pooling is None:
        return "/v1/chat/completions" if b'"messages"' in raw else "/v1/completions"
    try:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = {}
    own = {"embed": "/v1/embeddings", "classify": "/classify"}.get(pooling.task, "/pooling")
    return next((path for field, path in _BY_FIELD.items() if field in fields), own)
