"""The HTTP face of one replica: its routes, and how each request becomes a job for the engine."""

from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from starlette.requests import Request

from octavo_protocol import operations
from octavo_protocol.asgi import parse_body, run_unless_gone
from octavo_protocol.http_app import QUIET, Application, json_response, make_app
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.openai.answers import ChatCompletion, Completion
from octavo_protocol.openapi import EVENTS, ApiRoute, Content, Operation
from octavo_runtime.server.chat import ChatWriter
from octavo_runtime.server.chat_generation import chat_deltas
from octavo_runtime.server.chat_job import chat_job
from octavo_runtime.server.completion_job import completion_job
from octavo_runtime.server.completions import CompletionWriter
from octavo_runtime.server.continuation import continuation_route
from octavo_runtime.server.control_routes import ControlRoutes
from octavo_runtime.server.events import EventResponse
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.messages import MessagesRoutes
from octavo_runtime.server.received import (
    Received,
    read_overridden,
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
            ApiRoute(
                "/invocations",
                self.invocations,
                Operation(
                    "Either of the two above, by the fields of the body (for SageMaker).",
                    (ChatCompletionRequest, CompletionRequest),
                    {200: (Content(ChatCompletion | Completion), Content(media_type=EVENTS))},
                    errors=(404,),
                ),
                "POST",
            ),
        ]

    async def chat_completions(self, request: Request) -> Any:
        return await self._chat(request, await receive(self.state, request, ChatCompletionRequest))

    async def completions(self, request: Request) -> Any:
        return await self._text(request, await receive(self.state, request, CompletionRequest))

    async def invocations(self, request: Request) -> Any:
        """SageMaker's one route: the body's fields say what it is."""
        state = self.state
        raw, overrides = await read_overridden(state, request)
        if b'"messages"' in raw:
            chat = parse_body(raw, ChatCompletionRequest)
            return await self._chat(request, received(state, request, chat, overrides))
        text = parse_body(raw, CompletionRequest)
        return await self._text(request, received(state, request, text, overrides))

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
    routes = [*GenerationRoutes(state).routes(), *SmallRoutes(state).routes()]
    routes += ResponsesRoutes(state).routes()
    routes += MessagesRoutes(state).routes()
    routes += ControlRoutes(state).routes()
    return make_app(routes, state, options, title="Octavo replica")
