"""Requests as they arrive: the client's body with what a router changed in it, and the trace."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from octavo_protocol.asgi import JSON_TYPES, parse_body, parse_data, read_body, too_large
from octavo_protocol.continuation import TRACE_HEADER, ContinuationRequest, TraceHead
from octavo_protocol.errors import ValidationError
from octavo_protocol.overrides import (
    MAX_TOKEN_BYTES_RATIO,
    MEDIA_TYPE,
    TOKENS_HEADER,
    PromptTokens,
    RequestOverrides,
    split_overrides,
)
from octavo_runtime.server.requests import with_priority
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.stream_trace import StreamTrace

_B = TypeVar("_B", bound=BaseModel)
_NUM_PARTS = 2  # of a continuation: the first body and the trace; each may be as large as a body


@dataclass(frozen=True, slots=True)
class Received(Generic[_B]):
    """body: with a router's changes. prompt_tokens: what it tokenized, with our tokenizer. trace:
    of the answer; it may have begun elsewhere.
    """

    body: _B
    prompt_tokens: PromptTokens | None
    trace: StreamTrace


async def receive(state: ServerState, request: Request, kind: type[_B]) -> Received[_B]:
    """A request whose answer begins here. Raises `ValidationError`, or `UnavailableError` where the
    server takes no work.
    """
    raw, overrides = await read_overridden(state, request)
    return received(state, request, parse_body(raw, kind), overrides)


async def receive_continuation(
    state: ServerState, request: Request, kind: type[_B]
) -> Received[_B]:
    """What was asked at first, and how far the answer was. Raises as `receive`."""
    raw, overrides = await read_overridden(state, request, _NUM_PARTS)
    given = parse_body(raw, ContinuationRequest)
    if given.request.get("stream") is not True:
        raise ValidationError("only a stream can be continued: set stream", parameter="stream")
    trace = StreamTrace(TraceHead.parse(given.head), is_wanted=True, entries=given.trace)
    return received(state, request, parse_data(given.request, kind), overrides, trace)


async def read_overridden(
    state: ServerState, request: Request, num_parts: int = 1
) -> tuple[bytes, RequestOverrides]:
    """The client's body, `num_parts` times as large as a body may be at most, and what a router
    wants changed in it. Raises `RequestTooLargeError`, `ValidationError`, `UnavailableError`.
    """
    state.check_accepts()
    max_bytes = num_parts * state.max_body_bytes
    ratio = 1 + (MAX_TOKEN_BYTES_RATIO if TOKENS_HEADER in request.headers else 0)
    framed = await read_body(
        request.scope, request.receive, ratio * max_bytes, media_types=(*JSON_TYPES, MEDIA_TYPE)
    )
    raw, overrides = split_overrides(request.headers, framed)
    if len(raw) > max_bytes:
        raise too_large(max_bytes)
    return raw, overrides


def received(
    state: ServerState,
    request: Request,
    body: _B,
    overrides: RequestOverrides,
    trace: StreamTrace | None = None,
) -> Received[_B]:
    """The parsed `body` with `overrides`. trace: of an answer that began elsewhere."""
    body = overrides.applied_to(with_priority(body, request.headers.get("x-vllm-priority")))
    tokens = overrides.prompt_tokens
    if tokens is not None and tokens.tokenizer_id != state.llm.tokenizer.id:
        tokens = None
    trace = trace or StreamTrace.new(is_wanted=TRACE_HEADER in request.headers)
    return Received(body, tokens, trace)
