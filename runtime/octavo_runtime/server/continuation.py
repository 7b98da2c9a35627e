"""Routes that go on with streams which other replicas began, and the traces of those begun here."""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from octavo_protocol.asgi import parse_body, parse_data, read_body
from octavo_protocol.continuation import CONTINUE, TRACE_HEADER, ContinuationRequest, TraceHead
from octavo_protocol.errors import ValidationError
from octavo_protocol.openapi import EVENTS, ApiRoute, Content, Operation
from octavo_runtime.server.state import ServerState
from octavo_runtime.server.stream_trace import StreamTrace

_B = TypeVar("_B", bound=BaseModel)
_NUM_PARTS = 2  # the first body and the trace; each may be as large as a body


def continuation_route(path: str, endpoint: Callable[..., Any]) -> ApiRoute:
    """The route that goes on with streams of `path`."""
    return ApiRoute(
        CONTINUE + path,
        endpoint,
        Operation(
            f"The rest of a stream of {path} that another replica began, for routers.",
            (ContinuationRequest,),
            {200: (Content(media_type=EVENTS),)},
            errors=(404,),
        ),
        "POST",
    )


def new_trace(request: Request) -> StreamTrace:
    """The trace of an answer to `request` that begins here."""
    return StreamTrace.new(is_wanted=TRACE_HEADER in request.headers)


async def read_continuation(
    state: ServerState, request: Request, kind: type[_B]
) -> tuple[_B, StreamTrace]:
    """What was asked at first, and how far the answer was. Raises `ValidationError`."""
    state.check_accepts()
    raw = await read_body(request.scope, request.receive, _NUM_PARTS * state.max_body_bytes)
    given = parse_body(raw, ContinuationRequest)
    if given.request.get("stream") is not True:
        raise ValidationError("only a stream can be continued: set stream", parameter="stream")
    trace = StreamTrace(TraceHead.parse(given.head), is_wanted=True, entries=given.trace)
    return parse_data(given.request, kind), trace
