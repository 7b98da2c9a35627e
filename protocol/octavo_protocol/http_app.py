"""The shell of an ASGI application that router and replica have in common. Needs Starlette.

Inside it a route raises our errors; outside, every request has an id, is counted while it is open,
and every exception is an answer in OpenAI's shape.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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

logger = logging.getLogger(__name__)


class AppState(Protocol):
    """What the shell needs of the state behind the routes. num_open: requests being answered."""

    num_open: int

    def answering(self, start: Message) -> None:
        """An answer begins: counts it, and may add headers to its `http.response.start`."""


def make_app(routes: Sequence[Route], state: AppState) -> Starlette:
    """The application of `routes`. Starts and stops nothing."""
    app = Starlette(
        routes=routes,
        middleware=[Middleware(RequestIdMiddleware), Middleware(_Accounting, state=state)],
        exception_handlers={HTTPException: _on_http_error},
    )
    app.router.redirect_slashes = False  # a 404 with its envelope, not a redirect without one
    return app


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`body` (anything msgspec encodes) as a whole JSON answer."""
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )


class _Accounting:
    """Counts open requests and answers; every exception of a route becomes its answer here."""

    def __init__(self, app: App, state: AppState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.state.answering(message)
            await send(message)

        self.state.num_open += 1
        try:
            await self.app(scope, receive, counted)
        except ClientGoneError:
            logger.info("the client left")
        except Exception as error:
            if started:
                raise
            status, body, headers = error_answer(error)
            if status == 500:
                logger.error("request failed", exc_info=error)
            await json_response(body, status, headers)(scope, receive, counted)
        finally:
            self.state.num_open -= 1


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = http_error_answer(error.status_code, request.method, request.url.path)
    return json_response(body, error.status_code, dict(error.headers or {}))
