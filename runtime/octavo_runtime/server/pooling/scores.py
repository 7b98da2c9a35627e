"""/score and /rerank over one `ServerState`: what each kind of model makes of pairs of texts."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.asgi import run_unless_gone
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import RerankRequest, ScoreRequest
from octavo_protocol.openai.pooling_answers import (
    Document,
    Reranked,
    RerankResult,
    ScoreResult,
    Scores,
    pieces,
)
from octavo_protocol.openai.scoring import PairRequest
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.overrides import RequestOverrides
from octavo_runtime.engine.scoring import pair_score, pairs_of
from octavo_runtime.server.pooling.job import PoolingJob, make_job, read
from octavo_runtime.server.pooling.prompts import pair_prompts, text_prompts, text_truncation
from octavo_runtime.server.pooling.responses import JSON, respond
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.state import ServerState

Array = NDArray[np.float32]


class ScoreRoutes:
    """Routes with a result for each pair of texts."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        return [
            *(operations.post(path, self.score) for path in operations.SCORE_PATHS),
            *(operations.post(path, self.rerank) for path in operations.RERANK_PATHS),
        ]

    async def score(self, request: Request) -> Response:
        return await self.scores(request, *await read_overridden(self.state, request))

    async def rerank(self, request: Request) -> Response:
        return await self.ranks(request, *await read_overridden(self.state, request))

    async def scores(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Response:
        body = read(self.state, request, raw, overrides, ScoreRequest)
        model = self.state.check_model(body.model)
        job = make_job(self.state, request, body, self.state.check_scores())
        found = await self._scores(request, body, job, *body.sides())
        answer = Scores(id=f"score-{job.request_id}", model=model, data=[], usage=job.usage)
        items = (msgspec.json.encode(ScoreResult(i, score)) for i, score in enumerate(found))
        return await respond(pieces(answer, items), JSON)

    async def ranks(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Response:
        body = read(self.state, request, raw, overrides, RerankRequest)
        model = self.state.check_model(body.model)
        job = make_job(self.state, request, body, self.state.check_scores())
        queries, documents = body.sides()
        found = await self._scores(request, body, job, queries, documents)
        best = sorted(range(len(found)), key=lambda i: found[i], reverse=True)
        results = [
            RerankResult(i, found[i], Document(documents[i]) if body.return_documents else None)
            for i in best[: body.top_n or None]
        ]
        answer = Reranked(
            id=f"score-{job.request_id}", model=model, usage=job.usage, results=results
        )
        return await respond([msgspec.json.encode(answer)], JSON)

    async def _scores(
        self,
        request: Request,
        body: PairRequest,
        job: PoolingJob,
        queries: Sequence[str],
        documents: Sequence[str],
    ) -> list[float]:
        is_cross = job.pooling.scoring == "cross-encoder"
        score = _of_pairs if is_cross else _of_vectors
        return await run_unless_gone(request.receive, score(job, body, queries, documents))


async def _of_pairs(
    job: PoolingJob, body: PairRequest, queries: Sequence[str], documents: Sequence[str]
) -> list[float]:
    """By a cross-encoder: the value of its one class."""
    pairs = [(queries[i], documents[j]) for i, j in pairs_of(len(queries), len(documents))]
    prompts = pair_prompts(job.state, body, pairs)
    return await job.run(prompts, body.params("classify"), lambda _, data: float(data[0]))


async def _of_vectors(
    job: PoolingJob, body: PairRequest, queries: Sequence[str], documents: Sequence[str]
) -> list[float]:
    """By the vectors of both sides; those of documents are not kept."""
    _refuse_template(body)
    params = body.params(job.pooling.task)

    def compared(index: int, vectors: Array) -> float:
        query = kept[index if len(kept) > 1 else 0]
        return pair_score(job.pooling.scoring, query, vectors)

    truncation = text_truncation(job.state, body, body.max_tokens_per_query)
    prompts = text_prompts(job.state, "queries", queries, truncation)
    kept: list[Array] = await job.run(prompts, params, lambda _, data: data)
    truncation = text_truncation(job.state, body, body.max_tokens_per_doc)
    prompts = text_prompts(job.state, "documents", documents, truncation)
    return await job.run(prompts, params, compared)


def _refuse_template(body: PairRequest) -> None:
    """Raises `ValidationError` where the request is about a prompt of both texts."""
    for name in ("instruction", "chat_template", "chat_template_kwargs"):
        if getattr(body, name) is not None:
            raise ValidationError(
                f"{name} is for models that read both texts in one prompt; this one compares the "
                "vectors of the two: leave it out, or write it into the query",
                parameter=name,
            )
