"""The HTTP face of one replica: its routes, and how each request becomes a job for the engine."""

from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.requests import Request

from octavo_protocol import operations
from octavo_protocol.asgi import parse_body, run_unless_gone
from octavo_protocol.http_app import QUIET, Application, json_response, make_app
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.overrides import RequestOverrides
from octavo_runtime.server.adapter_routes import AdapterRoutes
from octavo_runtime.server.chat import ChatWriter
from octavo_runtime.server.chat_generation import chat_deltas
from octavo_runtime.server.chat_job import chat_job
from octavo_runtime.server.completion_job import completion_job
from octavo_runtime.server.completions import CompletionWriter
from octavo_runtime.server.continuation import continuation_route
from octavo_runtime.server.control_routes import ControlRoutes
from octavo_runtime.server.events import EventResponse
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.invocations import invocations_route
from octavo_runtime.server.messages import MessagesRoutes
from octavo_runtime.server.pooling.cohere import CohereRoutes
from octavo_runtime.server.pooling.routes import PoolingRoutes
from octavo_runtime.server.pooling.scores import ScoreRoutes
from octavo_runtime.server.received import (
    Received,
    receive,
    receive_continuation,
    received,
)
from octavo_runtime.server.responses import ResponsesRoutes
from octavo_runtime.server.small_routes import SmallRoutes
from octavo_runtime.server.state import ServerState


class GenerationRoutes:
    """/v1/chat/completions and /v1/completions over one `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        return [
            operations.post("/v1/chat/completions", self.chat_completions),
            operations.post("/v1/completions", self.completions),
            continuation_route("/v1/chat/completions", self.go_on_with_chat),
            continuation_route("/v1/completions", self.go_on_with_text),
        ]

    async def chat_completions(self, request: Request) -> Any:
        return await self._chat(request, await receive(self.state, request, ChatCompletionRequest))

    async def completions(self, request: Request) -> Any:
        return await self._text(request, await receive(self.state, request, CompletionRequest))

    async def invoked_chat(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Any:
        body = parse_body(raw, ChatCompletionRequest)
        return await self._chat(request, received(self.state, request, body, overrides))

    async def invoked_text(self, request: Request, raw: bytes, overrides: RequestOverrides) -> Any:
        body = parse_body(raw, CompletionRequest)
        return await self._text(request, received(self.state, request, body, overrides))

    async def go_on_with_chat(self, request: Request) -> Any:
        given = await receive_continuation(self.state, request, ChatCompletionRequest)
        return await self._chat(request, given)

    async def go_on_with_text(self, request: Request) -> Any:
        given = await receive_continuation(self.state, request, CompletionRequest)
        return await self._text(request, given)

    async def _chat(self, request: Request, given: Received[ChatCompletionRequest]) -> Any:
        state, body = self.state, given.body
        model = state.check_model(body.model)
        request_id = request.state.request_id
        answer_id = f"chatcmpl-{body.request_id or request_id}"
        job = await chat_job(
            state, body, given.prompt_tokens, answer_id=answer_id, request_id=request_id
        )
        job.follow(given.trace)
        writer, deltas = ChatWriter(state, body, model, job), chat_deltas(state, body, job)
        if body.stream:
            return self._stream(writer.events(deltas), job)
        return await self._whole(request, writer.whole(deltas))

    async def _text(self, request: Request, given: Received[CompletionRequest]) -> Any:
        state, body = self.state, given.body
        model = state.check_model(body.model)
        request_id = request.state.request_id
        answer_id = f"cmpl-{body.request_id or request_id}"
        job = await completion_job(
            state, body, given.prompt_tokens, answer_id=answer_id, request_id=request_id
        )
        job.follow(given.trace)
        writer = CompletionWriter(state, body, model, job)
        if body.stream:
            return self._stream(writer.events(), job)
        return await self._whole(request, writer.whole())

    def _stream(self, events: AsyncGenerator[bytes, None], job: GenerationJob) -> EventResponse:
        keep_alive_s = self.state.options.sse_keep_alive_interval
        return EventResponse(events, job.trace, keep_alive_s=keep_alive_s)

    async def _whole(self, request: Request, work: Coroutine[Any, Any, Any]) -> Any:
        return json_response(await run_unless_gone(request.receive, work))


def create_app(state: ServerState, options: HttpOptions = QUIET) -> Application:
    """The ASGI application of one replica. Starts and stops nothing."""
    generation, pooling, scoring = GenerationRoutes(state), PoolingRoutes(state), ScoreRoutes(state)
    invocations = invocations_route(
        state,
        {
            "/v1/chat/completions": generation.invoked_chat,
            "/v1/completions": generation.invoked_text,
            "/v1/embeddings": pooling.embed,
            "/pooling": pooling.pool,
            "/classify": pooling.classes,
            "/score": scoring.scores,
            "/rerank": scoring.ranks,
        },
    )
    routes = [*generation.routes(), *pooling.routes(), *scoring.routes(), invocations]
    routes += CohereRoutes(state).routes()
    routes += SmallRoutes(state).routes()
    routes += ResponsesRoutes(state).routes()
    routes += MessagesRoutes(state).routes()
    routes += AdapterRoutes(state).routes()
    routes += ControlRoutes(state).routes()
    return make_app(routes, state, options, title="Octavo replica", tracing=state.tracing)
