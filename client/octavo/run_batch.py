"""A file of requests through the routes of a replica, in this process and without a socket."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import httpx

from octavo.run_batch_lines import answer_line, refusal_line
from octavo_protocol.batch_lines import BatchRequest, parse_line
from octavo_protocol.errors import ValidationError, error_body

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from octavo_runtime.server.serve import ServeOptions

_NOT_IN_BATCHES = ("/v1/responses/", "/v1/messages/")
# Beside the routes under /v1, as are their other names.
_MORE = ("/pooling", "/classify", "/score", "/rerank", "/v2/rerank", "/v2/embed")


async def run_batch(
    options: "ServeOptions",
    lines: Sequence[tuple[int, bytes]],
    *,
    max_in_flight: int,
    progress: Callable[[int], object],
) -> list[bytes]:
    """The output line of each (number, line) of the input, in their order.

    progress: called with 1 for each line that is done.
    Raises `ConfigError` or `GenerationError` when the engine cannot start.
    """
    from octavo_runtime.server.app import create_app
    from octavo_runtime.server.lora_modules import load_modules
    from octavo_runtime.server.serve import server_state, start_llm

    llm = start_llm(options)
    try:
        await llm.wait_ready()
        state = server_state(options, llm)
        await load_modules(state, options.lora_modules)
        app = create_app(state)
        return await answer_lines(app, lines, max_in_flight=max_in_flight, progress=progress)
    finally:
        await llm.shutdown()


async def answer_lines(
    app: "Starlette",
    lines: Sequence[tuple[int, bytes]],
    *,
    max_in_flight: int,
    progress: Callable[[int], object],
) -> list[bytes]:
    """As `run_batch`, with the application that answers."""
    urls = batch_urls(app)
    limit = asyncio.Semaphore(max_in_flight)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def answered(number: int, line: bytes) -> bytes:
        async with limit:
            try:
                request = parse_line(line, urls)
            except ValidationError as error:
                answer = refusal_line(number, line, error)
            else:
                answer = await _answer(client, request)
        progress(1)
        return answer

    async with httpx.AsyncClient(
        transport=transport, base_url="http://batch", timeout=None
    ) as client:
        return await asyncio.gather(*(answered(i, line) for i, line in lines))


def batch_urls(app: "Starlette") -> list[str]:
    """The routes of `app` that take a request with a JSON body and generate or pool."""
    return sorted(
        path
        for route in app.routes
        if "POST" in (getattr(route, "methods", None) or ())
        and ((path := str(getattr(route, "path", ""))).startswith("/v1/") or path in _MORE)
        and "{" not in path
        and not path.startswith(_NOT_IN_BATCHES)
    )


async def _answer(client: httpx.AsyncClient, request: BatchRequest) -> bytes:
    response = await client.post(request.url, json=request.body)
    try:
        body: Any = response.json()
    except ValueError:
        body = error_body(response.text[:200] or "no answer", error_type="internal_error")
    return answer_line(
        request.custom_id,
        response.status_code,
        body,
        request_id=response.headers.get("x-request-id"),
    )
