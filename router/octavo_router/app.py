"""The HTTP face of the router."""

import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo_protocol.asgi import (
    ClientGoneError,
    Message,
    Receive,
    RequestIdMiddleware,
    Scope,
    Send,
    error_answer,
    http_error_answer,
    parse_body,
    read_body,
    run_unless_gone,
)
from octavo_protocol.errors import NotFoundError, UnavailableError
from octavo_protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_protocol.openai_responses import Model, ModelList
from octavo_router.decisions import GenerationRequest, PromptKey
from octavo_router.proxy import ROUTE_HEADER, ProxyRequest
from octavo_router.state import RouterState

logger = logging.getLogger(__name__)

_GENERATION: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
}


class _Relayed:
    """An answer that the proxy sends itself; ends when the client leaves."""

    def __init__(self, state: RouterState, request: ProxyRequest) -> None:
        self._state = state
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_unless_gone(receive, self._state.proxy.relay(self._request, send))


class Routes:
    """The endpoints over one `RouterState`."""

    def __init__(self, state: RouterState) -> None:
        self.state = state

    async def generate(self, request: Request) -> Any:
        """/v1/chat/completions and /v1/completions."""
        raw = await self._body(request)
        body: GenerationRequest = parse_body(raw, _GENERATION[request.url.path])
        self.state.decider.check_model(body.model)
        body.sampling_params(self.state.defaults, max_tokens=None)  # the replica's checks, early
        key = await self.state.decider.prompt_key(body)
        return _Relayed(self.state, self._proxied(request, raw, body.model, key, body.stream))

    async def tokenize(self, request: Request) -> Any:
        return await self._plain(request, TokenizeRequest)

    async def detokenize(self, request: Request) -> Any:
        return await self._plain(request, DetokenizeRequest)

    async def models(self, request: Request) -> Response:
        models: dict[str, Model] = {}
        for record in self.state.replicas.records:
            for name in record.served_names:
                models[name] = Model(
                    name, self.state.started_at, record.max_model_len, record.model
                )
        return _json(ModelList([models[name] for name in sorted(models)]))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.state.is_healthy else 503)

    async def ready(self, request: Request) -> Response:
        stage = self.state.stage
        return _json({"status": stage, "stage": stage}, 200 if stage == "ready" else 503)

    async def version(self, request: Request) -> Response:
        return _json({"version": metadata.version("octavo")})

    async def metrics(self, request: Request) -> Response:
        self.state.measure()
        return Response(
            self.state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def recall(self, request: Request) -> Response:
        """Why a recent request went where it went."""
        decision = self.state.decider.recall(request.path_params["request_id"])
        if decision is None:
            raise NotFoundError("no recent request has this id; it is the x-request-id header")
        return _json(decision.as_json())

    async def dry_run(self, request: Request) -> Response:
        """Where a chat or completion request would go, without sending it."""
        raw = await self._body(request)
        # Told apart before parsing: each kind has its own complaints about a wrong field.
        path = "/v1/chat/completions" if b'"messages"' in raw else "/v1/completions"
        body: GenerationRequest = parse_body(raw, _GENERATION[path])
        self.state.decider.check_model(body.model)
        key = await self.state.decider.prompt_key(body)
        decision = self.state.decider.choose(
            request.state.request_id, body.model, key, is_dry_run=True
        )
        return _json(decision.as_json())

    async def _plain(
        self, request: Request, kind: type[TokenizeRequest] | type[DetokenizeRequest]
    ) -> Any:
        raw = await self._body(request)
        body = parse_body(raw, kind)
        self.state.decider.check_model(body.model)
        return _Relayed(self.state, self._proxied(request, raw, body.model, PromptKey(), False))

    def _proxied(
        self, request: Request, raw: bytes, model: str | None, key: PromptKey, is_stream: bool
    ) -> ProxyRequest:
        return ProxyRequest(
            request_id=request.state.request_id,
            path=request.url.path,
            body=raw,
            model=model or None,
            key=key,
            is_stream=is_stream,
            authorization=request.headers.get("authorization"),
        )

    async def _body(self, request: Request) -> bytes:
        if self.state.is_draining:
            raise UnavailableError("the router is stopping; try another one")
        return await read_body(request.scope, request.receive, self.state.max_body_bytes)


def create_app(state: RouterState) -> Starlette:
    """The router's ASGI application. Starts and stops nothing: `RouterState` does."""
    routes = Routes(state)
    app = Starlette(
        routes=[
            *(Route(path, routes.generate, methods=["POST"]) for path in _GENERATION),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/ready", routes.ready, methods=["GET"]),
            Route("/version", routes.version, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            Route("/debug/route", routes.dry_run, methods=["POST"]),
            Route("/debug/route/{request_id}", routes.recall, methods=["GET"]),
        ],
        middleware=[Middleware(RequestIdMiddleware), Middleware(_Accounting, state=state)],
        exception_handlers={HTTPException: _on_http_error},
    )
    app.router.redirect_slashes = False  # a 404 with its envelope, not a redirect without one
    return app


class _Accounting:
    """Counts answers, adds `x-octavo-route`; every exception of a route becomes its answer here."""

    def __init__(self, app: Callable[..., Any], state: RouterState) -> None:
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
                self.state.metrics.requests.labels(str(message["status"])).inc()
                if not any(name == ROUTE_HEADER for name, _ in message["headers"]):
                    message["headers"] = [*message["headers"], (ROUTE_HEADER, b"router")]
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
            await _json(body, status, headers)(scope, receive, counted)
        finally:
            self.state.num_open -= 1


async def _on_http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _json(http_error_answer(status, request.method, request.url.path), status, headers)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )
