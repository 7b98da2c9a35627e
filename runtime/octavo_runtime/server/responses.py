"""/v1/responses over one `ServerState`: a chat generation, written down as a response object."""

import itertools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from octavo_protocol import operations
from octavo_protocol.asgi import error_answer, run_unless_gone
from octavo_protocol.errors import ClientError, OctavoError, ValidationError
from octavo_protocol.http_app import json_response
from octavo_protocol.openai import ChatCompletionRequest
from octavo_protocol.openai.answers import TokenLogprob
from octavo_protocol.openai.response_answers import Event, Response, named_event
from octavo_protocol.openai.response_items import InputItem
from octavo_protocol.openai.responses import ResponsesRequest, is_store_enabled
from octavo_protocol.openapi import ApiRoute, Content, Operation
from octavo_runtime.server.chat_delta import ChatDelta
from octavo_runtime.server.chat_generation import chat_deltas
from octavo_runtime.server.chat_job import chat_job
from octavo_runtime.server.continuation import continuation_route
from octavo_runtime.server.events import EventResponse
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.logprobs import LogprobStyle, chat_logprobs
from octavo_runtime.server.received import Received, receive, receive_continuation
from octavo_runtime.server.response_encoder import ResponseEncoder
from octavo_runtime.server.response_store import ResponseStore
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.stream_trace import StreamTrace

logger = logging.getLogger(__name__)
_PREFIX = "resp_"


class ResponsesRoutes:
    """Answers are kept only where the environment asks for it."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.store = ResponseStore() if is_store_enabled() else ResponseStore(0)

    def routes(self) -> list[ApiRoute]:
        whole = Content(Response)
        return [
            operations.post("/v1/responses", self.create),
            continuation_route("/v1/responses", self.go_on),
            ApiRoute(
                "/v1/responses/{id}",
                self.retrieve,
                Operation("An answer that was kept.", answers={200: (whole,)}, errors=(400, 404)),
                "GET",
            ),
            ApiRoute(
                "/v1/responses/{id}/cancel",
                self.cancel,
                Operation("End an answer in the background.", errors=(400, 404)),
                "POST",
            ),
        ]

    async def create(self, request: Request) -> Any:
        return await self._answer(request, await receive(self.state, request, ResponsesRequest))

    async def go_on(self, request: Request) -> Any:
        given = await receive_continuation(self.state, request, ResponsesRequest)
        return await self._answer(request, given)

    async def _answer(self, request: Request, given: Received[ResponsesRequest]) -> Any:
        state, body, trace = self.state, given.body, given.trace
        model = state.check_model(body.model)
        earlier = self._earlier(body)
        items = [*earlier, *body.items]
        chat = body.to_chat(earlier)
        response_id = _PREFIX + (body.request_id or trace.head.nonce).removeprefix(_PREFIX)
        job = await chat_job(
            state,
            chat,
            None if earlier else given.prompt_tokens,  # a router does not have what was said before
            answer_id=response_id,
            request_id=request.state.request_id,
        )
        if job.params.logprobs is not None:
            trace.forbid()  # the last event repeats them all
        job.follow(trace)
        encoder = _encoder(_started(body, model, job, self._keeps(body)), chat, job)
        steps = self._steps(body, items, encoder, chat_deltas(state, chat, job), trace)
        if body.stream:
            keep_alive_s = state.options.sse_keep_alive_interval
            events = _as_bytes(steps, encoder, trace)
            return EventResponse(events, trace, keep_alive_s=keep_alive_s, ending=b"")
        await run_unless_gone(request.receive, _exhaust(steps))
        return json_response(encoder.response)

    async def retrieve(self, request: Request) -> HttpResponse:
        return json_response(self.store.get(request.path_params["id"]).response)

    async def cancel(self, request: Request) -> HttpResponse:
        self.store.get(request.path_params["id"])
        raise ValidationError(
            "only a response that runs in the background can be cancelled, and this server runs "
            "none: close the connection of a response to end it"
        )

    def _earlier(self, body: ResponsesRequest) -> tuple[InputItem, ...]:
        if body.previous_response_id is None:
            return ()
        stored = self.store.get(body.previous_response_id, parameter="previous_response_id")
        return stored.items

    def _keeps(self, body: ResponsesRequest) -> bool:
        return body.store and self.store.is_enabled

    async def _steps(
        self,
        body: ResponsesRequest,
        items: list[InputItem],
        encoder: ResponseEncoder,
        deltas: AsyncGenerator[ChatDelta, None],
        trace: StreamTrace,
    ) -> AsyncGenerator[list[Event], None]:
        """The events of each delta, and those of the end, when the answer is kept. A stream that
        fails after its beginning ends with `response.failed`; before, without a stream, and where
        it can go on elsewhere, the error is raised.
        """
        started = False
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    yield encoder.feed(delta)
                    started = True
        except Exception as error:
            is_moved = trace.is_wanted and not isinstance(error, ClientError)
            if not (started and body.stream) or is_moved:
                raise
            if not isinstance(error, OctavoError):
                logger.exception("a stream failed")
            yield encoder.fail(error_answer(error)[1]["error"]["message"])
            return
        trace.end()
        yield encoder.finish(int(time.time()))
        if self._keeps(body):
            self.store.put(encoder.response, items)


def _started(body: ResponsesRequest, model: str, job: GenerationJob, is_kept: bool) -> Response:
    """The response before anything is said: what the request set, and what holds otherwise."""
    echoed = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    params = job.params
    return Response(
        id=job.answer_id,
        model=model,
        created_at=job.trace.head.created,
        output=[],
        instructions=body.instructions,
        max_output_tokens=params.max_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        prompt_cache_retention=body.prompt_cache_retention,
        reasoning=echoed.get("reasoning"),
        safety_identifier=body.safety_identifier,
        service_tier=body.service_tier or "auto",
        store=is_kept,
        temperature=params.temperature,
        text=echoed.get("text") or {"format": {"type": "text"}},
        tool_choice=echoed.get("tool_choice", "auto"),
        tools=echoed.get("tools", []),
        top_logprobs=body.top_logprobs,
        top_p=params.top_p,
        truncation=body.truncation,
        user=body.user,
    )


def _encoder(
    response: Response, chat: ChatCompletionRequest, job: GenerationJob
) -> ResponseEncoder:
    style = LogprobStyle(chat.top_logprobs or 0)
    numbers = itertools.count()

    def logprobs_of(delta: ChatDelta) -> list[TokenLogprob]:
        shown = chat_logprobs(delta.token_ids, delta.logprobs or None, style)
        return shown.content if shown is not None else []

    return ResponseEncoder(
        response,
        num_input_tokens=job.num_prompt_tokens,
        new_id=lambda prefix: job.trace.new_id(prefix, next(numbers)),
        logprobs_of=logprobs_of,
    )


async def _as_bytes(
    steps: AsyncGenerator[list[Event], None], encoder: ResponseEncoder, trace: StreamTrace
) -> AsyncGenerator[bytes, None]:
    async with aclosing(steps):
        async for events in steps:
            if trace.is_replaying:
                encoder.num_events = trace.num_events  # tokens came in other pieces then
            yield trace.sealed(b"".join(map(named_event, events)), encoder.num_events)


async def _exhaust(steps: AsyncGenerator[list[Event], None]) -> None:
    async with aclosing(steps):
        async for _ in steps:
            pass
