"""/v1/embeddings, /pooling and /classify over one `ServerState`."""

from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.asgi import run_unless_gone
from octavo_protocol.openai import ClassifyRequest, EmbeddingRequest, PoolRequest
from octavo_protocol.openai.pooling import VectorRequest
from octavo_protocol.openai.pooling_answers import (
    Classes,
    ClassifyItem,
    EmbeddingItem,
    Embeddings,
    Pooled,
    PoolItem,
    pieces,
)
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.overrides import RequestOverrides
from octavo_protocol.pooling import POOLING_TASKS
from octavo_runtime.server.pooling.job import PoolingJob, make_job, read
from octavo_runtime.server.pooling.octets import octets
from octavo_runtime.server.pooling.prompts import input_prompts
from octavo_runtime.server.pooling.responses import JSON, respond
from octavo_runtime.server.pooling.vectors import as_json
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.state import ServerState

Array = NDArray[np.float32]


class PoolingRoutes:
    """Routes with a result for each input."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        return [
            operations.post("/v1/embeddings", self.embeddings),
            operations.post("/pooling", self.pooling),
            operations.post("/classify", self.classify),
        ]

    async def embeddings(self, request: Request) -> Response:
        return await self.embed(request, *await read_overridden(self.state, request))

    async def pooling(self, request: Request) -> Response:
        return await self.pool(request, *await read_overridden(self.state, request))

    async def classify(self, request: Request) -> Response:
        return await self.classes(request, *await read_overridden(self.state, request))

    async def embed(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Response:
        body = read(self.state, request, raw, overrides, EmbeddingRequest)
        model = self.state.check_model(body.model)
        pooling = self.state.check_pools("embed", "token_embed")
        task = "embed" if "embed" in pooling.tasks else "token_embed"
        job = make_job(self.state, request, body, pooling)
        found = await self._vectors(request, body, job, task)
        head = partial(Embeddings, id=f"embd-{job.request_id}", model=model)
        return await _answer(body, job, found, head, EmbeddingItem)

    async def pool(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Response:
        body = read(self.state, request, raw, overrides, PoolRequest)
        model = self.state.check_model(body.model)
        pooling = self.state.check_pools(*([body.task] if body.task else POOLING_TASKS))
        job = make_job(self.state, request, body, pooling)
        found = await self._vectors(request, body, job, body.task or pooling.task)
        head = partial(Pooled, id=f"pool-{job.request_id}", model=model)
        return await _answer(body, job, found, head, PoolItem)

    async def classes(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Response:
        body = read(self.state, request, raw, overrides, ClassifyRequest)
        model = self.state.check_model(body.model)
        pooling = self.state.check_pools("classify")
        job = make_job(self.state, request, body, pooling)
        prompts = input_prompts(self.state, body)
        work = job.run(prompts, body.params("classify"), partial(_item, pooling.labels))
        items = await run_unless_gone(request.receive, work)
        answer = Classes(id=f"classify-{job.request_id}", model=model, data=[], usage=job.usage)
        return await respond(pieces(answer, map(msgspec.json.encode, items)), JSON)

    async def _vectors(
        self, request: Request, body: VectorRequest, job: PoolingJob, task: str
    ) -> list[Array]:
        work = job.run(input_prompts(self.state, body), body.params(task), lambda _, data: data)
        return await run_unless_gone(request.receive, work)


async def _answer(
    body: VectorRequest, job: PoolingJob, found: list[Array], head: Any, item: Any
) -> Response:
    """head: makes the answer from data and usage; item: what one of `data` is."""
    answer = head(data=[], usage=job.usage)
    if body.encoding_format in ("bytes", "bytes_only"):
        return await octets(body, answer, found)
    encode = partial(
        as_json, form=body.encoding_format, dtype=body.embed_dtype, order=body.endianness
    )
    items = (
        msgspec.json.encode(item(i, msgspec.Raw(encode(each)))) for i, each in enumerate(found)
    )
    return await respond(pieces(answer, items), JSON)


def _item(labels: list[str], index: int, probabilities: Array) -> ClassifyItem:
    probs = probabilities.tolist()
    best = int(probabilities.argmax())
    return ClassifyItem(index, labels[best] if labels else None, probs, len(probs))
