"""Files and batches need Redis; without it they say so."""

from collections.abc import Awaitable, Callable

import redis.exceptions
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol.errors import UnavailableError

Endpoint = Callable[[Request], Awaitable[Response]]


def needs_redis(endpoint: Endpoint) -> Endpoint:
    """`endpoint`, which raises `UnavailableError` while Redis is away."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except redis.exceptions.RedisError as error:
            raise UnavailableError(
                "files and batches cannot be used while Redis is away; try again in a moment",
                code="redis_unavailable",
            ) from error

    return answer
