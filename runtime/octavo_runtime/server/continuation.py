"""Routes that go on with streams which other replicas began."""

from collections.abc import Callable
from typing import Any

from octavo_protocol.continuation import CONTINUE, ContinuationRequest
from octavo_protocol.openapi import EVENTS, ApiRoute, Content, Operation


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
