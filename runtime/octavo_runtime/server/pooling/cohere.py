"""POST /v2/embed over one `ServerState`: Cohere's shape of what /v1/embeddings gives."""

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.asgi import run_unless_gone
from octavo_protocol.cohere import (
    BilledUnits,
    EmbedAnswer,
    EmbeddingsByType,
    EmbeddingType,
    EmbedRequest,
    Meta,
)
from octavo_protocol.http_app import json_response
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.pooling import PoolingParams
from octavo_protocol.text_encoding import Truncation
from octavo_runtime.server.pooling.job import make_job, read
from octavo_runtime.server.pooling.prompts import text_prompts
from octavo_runtime.server.pooling.vectors import as_base64
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.state import ServerState


class CohereRoutes:
    """Cohere's route for embeddings."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        return [operations.post("/v2/embed", self.embed)]

    async def embed(self, request: Request) -> Response:
        state = self.state
        body = read(state, request, *await read_overridden(state, request), EmbedRequest)
        state.check_model(body.model)
        pooling = state.check_pools("embed")
        job = make_job(state, request, body, pooling)
        prompt = body.prompt(pooling.prompts)
        texts = [prompt + text for text in body.given()]
        prompts = text_prompts(state, "texts", texts, self._truncation(body))
        params = PoolingParams(
            task="embed", dimensions=body.output_dimension, use_activation=body.use_activation
        )
        work = job.run(prompts, params, lambda _, data: data)
        vectors = np.stack(await run_unless_gone(request.receive, work))
        by_type = EmbeddingsByType()
        for kind in body.kinds:
            _fill(by_type, kind, vectors)
        meta = Meta(BilledUnits(job.num_tokens))
        return json_response(EmbedAnswer(job.request_id, by_type, body.given(), meta))

    def _truncation(self, body: EmbedRequest) -> Truncation:
        if body.side is None:
            return Truncation()
        longest = self.state.check_accepts().max_model_len
        return Truncation(min(body.max_tokens or longest, longest), body.side)


def _fill(by_type: EmbeddingsByType, kind: EmbeddingType, vectors: NDArray[np.float32]) -> None:
    match kind:
        case "float":
            by_type.float_ = vectors.tolist()
        case "ubinary":
            by_type.ubinary = np.packbits(vectors > 0, axis=-1).tolist()
        case "binary":
            bits = np.packbits(vectors > 0, axis=-1)
            by_type.binary = (bits.astype(np.int16) - 128).tolist()
        case "base64":
            by_type.base64 = [as_base64(each) for each in vectors]
