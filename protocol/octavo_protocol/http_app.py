"""The shell of an ASGI application that router and replica have in common. Needs FastAPI.

Inside it a route raises our errors; outside, every request has an id, is counted while it is open,
and every exception is an answer in the shape of the route's API.
"""

import importlib
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Protocol, cast

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from octavo_protocol import openapi
from octavo_protocol.asgi import (
    App,
    ClientGoneError,
    Message,
    Receive,
    RequestIdMiddleware,
    Scope,
    Send,
    error_answer,
    http_error_answer,
)
from octavo_protocol.errors import ConfigError
from octavo_protocol.http_options import HttpOptions
from octavo_protocol.security import ApiKeyMiddleware
from octavo_protocol.spans import Tracing
from octavo_protocol.tracing import TracingMiddleware
from octavo_protocol.wire_formats import wire_format

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("octavo.access")

QUIET = HttpOptions(disable_uvicorn_access_log=True)


class AppState(Protocol):
    """What the shell needs of the state behind the routes. num_open: requests being answered."""

    num_open: int

    def answering(self, start: Message) -> None:
        """An answer begins: counts it, and may add headers to its `http.response.start`."""


class Application(FastAPI):
    """A FastAPI application of plain Starlette routes: `/docs`, `/redoc` and `/openapi.json` show
    what the `ApiRoute`s among them declare.

    prefix: path under which a proxy publishes the application; the proxy may strip it or not.
    refusals: statuses that any route with a body may answer besides those of all servers.
    """

    prefix = ""
    refusals: Sequence[int] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        if self.prefix:
            scope["root_path"] = self.prefix
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Only what this application needs: FastAPI's own layers, for features that plain routes do
        not use, and matching by pattern would be a seventh of the router's time for a request.
        """
        handlers = cast(Any, self.exception_handlers)
        stack: ASGIApp = ExceptionMiddleware(self.router, handlers=handlers)
        stack = _ByPath(self.routes, stack)
        for layer in reversed(self.user_middleware):
            stack = layer.cls(stack, *layer.args, **layer.kwargs)
        return stack

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.document(
                self.routes, title=self.title, version=self.version, refusals=self.refusals
            )
        return self.openapi_schema


def make_app(
    routes: Sequence[Route],
    state: AppState,
    options: HttpOptions = QUIET,
    *,
    title: str = "Octavo",
    guard: Middleware | None = None,
    tracing: Tracing | None = None,
    refusals: Sequence[int] = (),
) -> Application:
    """The application of `routes`. Starts and stops nothing.

    guard: who may use it, in place of `api_key` of the options. tracing: where spans go, if
    anywhere. refusals: of `Application`.

    Raises `ConfigError` for middleware that cannot be imported.
    """
    shown = not options.disable_fastapi_docs
    paths = frozenset(route.path for route in routes)
    traced = [Middleware(TracingMiddleware, tracing=tracing, routes=paths)] if tracing else []
    application = Application(
        title=title,
        version=metadata.version("octavo"),
        routes=list(routes),
        middleware=[Middleware(RequestIdMiddleware), *traced, *_middleware(state, options, guard)],
        exception_handlers={HTTPException: _on_http_error},
        openapi_url="/openapi.json" if shown else None,
        docs_url="/docs" if shown else None,
        redoc_url="/redoc" if shown else None,
        redirect_slashes=False,  # a 404 with its envelope, not a redirect without one
    )
    application.prefix = options.root_path.rstrip("/")
    application.refusals = refusals
    return application


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` (anything msgspec encodes) as a whole JSON answer."""
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )


def _middleware(
    state: AppState, options: HttpOptions, guard: Middleware | None
) -> list[Middleware]:
    """From the outside in, under request id and span: accounting, CORS, error answers (which web
    pages can read only inside CORS), the operator's own, API keys.
    """
    stack = [
        Middleware(_Accounting, state=state, options=options),
    ]
    if options.allowed_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=options.allowed_origins,
                allow_methods=options.allowed_methods,
                allow_headers=options.allowed_headers,
                allow_credentials=options.allow_credentials,
                expose_headers=("x-request-id",),
            )
        )
    stack += [Middleware(_ErrorAnswers), *map(_imported, options.middleware)]
    if guard is not None:
        stack.append(guard)
    elif options.api_key:
        stack.append(Middleware(ApiKeyMiddleware, keys=options.api_key))
    return stack


def _imported(path: str) -> Middleware:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"middleware {path!r} cannot be imported: {error}") from error
    if inspect.isclass(found):
        return Middleware(cast(Callable[[App], App], found))
    if inspect.iscoroutinefunction(found):
        return Middleware(BaseHTTPMiddleware, dispatch=found)
    raise ConfigError(f"middleware {path!r} must be a class or an async function")


class _ByPath:
    """Calls the endpoint of a path without parameters at once; leaves the others to `rest`."""

    def __init__(self, routes: Sequence[BaseRoute], rest: ASGIApp) -> None:
        self._rest = rest
        self._endpoints = {
            (method, route.path): route.endpoint
            for route in routes
            if isinstance(route, Route) and not route.param_convertors
            if inspect.iscoroutinefunction(route.endpoint)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and not scope.get("root_path"):
            endpoint = self._endpoints.get((scope["method"], scope["path"]))
        if endpoint is None:
            await self._rest(scope, receive, send)
            return
        answer = await endpoint(Request(scope, receive, send))
        await answer(scope, receive, send)


class _Accounting:
    """Counts open requests and answers, and logs them."""

    def __init__(self, app: App, state: AppState, options: HttpOptions) -> None:
        self.app = app
        self.state = state
        self._is_logging = not options.disable_uvicorn_access_log
        self._unlogged = frozenset(options.disable_access_log_for_endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        begun = time.monotonic()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.state.answering(message)
            await send(message)

        self.state.num_open += 1
        try:
            await self.app(scope, receive, counted)
        finally:
            self.state.num_open -= 1
            if self._is_logging and scope["path"] not in self._unlogged:
                seconds = time.monotonic() - begun
                access_logger.info(
                    "%s %s %d %.3f s", scope["method"], scope["path"], status, seconds
                )


class _ErrorAnswers:
    """Every exception of what is inside becomes its answer, in the shape of the route's API."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientGoneError:
            logger.info("the client left")
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            code, body, headers = error_answer(error)
            if code == 500:
                logger.error("request failed", exc_info=error)
            shaped = wire_format(scope["path"]).body(code, body)
            await json_response(shaped, code, headers)(scope, receive, send)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    body = http_error_answer(error.status_code, request.method, path)
    shaped = wire_format(path).body(error.status_code, body)
    return json_response(shaped, error.status_code, dict(error.headers or {}))
