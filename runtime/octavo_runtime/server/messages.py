"""/v1/messages over one `ServerState`: a chat generation, written down as Anthropic's messages."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.anthropic import CountTokensRequest, MessagesRequest
from octavo_protocol.anthropic.answers import (
    StreamEvent,
    TokenCount,
)
from octavo_protocol.asgi import error_answer, run_unless_gone
from octavo_protocol.errors import ClientError, GenerationError, OctavoError
from octavo_protocol.http_app import json_response
from octavo_protocol.openai.response_answers import named_event
from octavo_protocol.openapi import ApiRoute
from octavo_protocol.wire_formats import ANTHROPIC
from octavo_runtime.server.chat_delta import ChatDelta
from octavo_runtime.server.chat_generation import chat_deltas
from octavo_runtime.server.chat_job import chat_job
from octavo_runtime.server.continuation import continuation_route
from octavo_runtime.server.events import EventResponse
from octavo_runtime.server.message_encoder import MessageEncoder
from octavo_runtime.server.received import Received, receive, receive_continuation
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.stream_trace import StreamTrace

logger = logging.getLogger(__name__)
_PREFIX = "msg_"


class MessagesRoutes:
    """/v1/messages and /v1/messages/count_tokens. Errors are in Anthropic's envelope."""

    def __init__(self, state: ServerState) -> None:
        self.state = state

    def routes(self) -> list[ApiRoute]:
        return [
            operations.post("/v1/messages", self.create),
            continuation_route("/v1/messages", self.go_on),
            operations.post("/v1/messages/count_tokens", self.count_tokens),
        ]

    async def create(self, request: Request) -> Any:
        return await self._answer(request, await receive(self.state, request, MessagesRequest))

    async def go_on(self, request: Request) -> Any:
        given = await receive_continuation(self.state, request, MessagesRequest)
        return await self._answer(request, given)

    async def _answer(self, request: Request, given: Received[MessagesRequest]) -> Any:
        state, body, trace = self.state, given.body, given.trace
        model = state.check_model(body.model)
        chat = body.to_chat()
        if state.reasoning_parser is None:
            chat.thinking_token_budget = None  # a model that does not think needs no limit
        message_id = _PREFIX + (body.request_id or trace.head.nonce).removeprefix(_PREFIX)
        job = await chat_job(
            state,
            chat,
            given.prompt_tokens,
            answer_id=message_id,
            request_id=request.state.request_id,
        )
        job.follow(trace)
        encoder = MessageEncoder(message_id, model, job.num_prompt_tokens)
        steps = _steps(encoder, chat_deltas(state, chat, job), trace)
        if body.stream:
            keep_alive_s = state.options.sse_keep_alive_interval
            events = _as_bytes(steps, trace)
            return EventResponse(events, trace, keep_alive_s=keep_alive_s, ending=b"")
        await run_unless_gone(request.receive, _exhaust(steps))
        return json_response(encoder.message)

    async def count_tokens(self, request: Request) -> Response:
        state = self.state
        given = await receive(state, request, CountTokensRequest)
        state.check_model(given.body.model)
        job = await chat_job(
            state,
            given.body.to_chat(),
            given.prompt_tokens,
            answer_id="",
            request_id=request.state.request_id,
        )
        return json_response(TokenCount(job.num_prompt_tokens))


async def _steps(
    encoder: MessageEncoder, deltas: AsyncGenerator[ChatDelta, None], trace: StreamTrace
) -> AsyncGenerator[list[StreamEvent], None]:
    """The events of each delta, and those of the end."""
    async with aclosing(deltas):
        async for delta in deltas:
            events = encoder.feed(delta)
            if delta.finish_reason == "abort":
                raise GenerationError("the request was aborted")
            yield events
    trace.end()
    yield encoder.finish()


async def _as_bytes(
    steps: AsyncGenerator[list[StreamEvent], None], trace: StreamTrace
) -> AsyncGenerator[bytes, None]:
    """What fails after the beginning ends the stream with an event; before, or where the stream can
    go on elsewhere, it is raised.
    """
    started = False
    try:
        async with aclosing(steps):
            async for events in steps:
                yield trace.sealed(b"".join(map(named_event, events)))
                started = True
    except Exception as error:
        if not started or (trace.is_wanted and not isinstance(error, ClientError)):
            raise
        if not isinstance(error, OctavoError):
            logger.exception("a stream failed")
        status, body, _ = error_answer(error)
        yield ANTHROPIC.event(status, body)


async def _exhaust(steps: AsyncGenerator[list[StreamEvent], None]) -> None:
    async with aclosing(steps):
        async for _ in steps:
            pass
