"""The HTTP face of the router."""

from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.anthropic import CountTokensRequest, MessagesRequest
from octavo_protocol.asgi import (
    Departure,
    Receive,
    Scope,
    Send,
    parse_body,
    read_body,
    run_unless_gone,
)
from octavo_protocol.errors import NotFoundError, UnavailableError
from octavo_protocol.http_app import json_response, make_app
from octavo_protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_protocol.openai.answers import Model, ModelList
from octavo_protocol.openai.responses import ResponsesRequest
from octavo_protocol.openapi import ApiRoute, Content, Operation
from octavo_protocol.spans import TRACE_CONTEXT_HEADERS
from octavo_router.calls import Call, Calls, pinned
from octavo_router.decisions import GenerationRequest, PromptKey
from octavo_router.deployment import Deployment
from octavo_router.pooling import POOLING, pooling_key
from octavo_router.proxy import ProxyRequest
from octavo_router.resumption import Asked, asked
from octavo_router.sessions import session_of
from octavo_router.state import RouterState
from octavo_router.tenancy.middleware import TenantMiddleware, caller_of
from octavo_router.tenancy.terms import (
    check_may,
)

_Body = (
    ChatCompletionRequest
    | CompletionRequest
    | ResponsesRequest
    | MessagesRequest
    | CountTokensRequest
)
_GENERATION: dict[str, type[_Body]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
}
# What a tenant may not do, limits and full queues, deadlines.
_REFUSALS = (403, 429, 504)
# Beside the key and the request's id.
_FORWARDED = ("x-vllm-priority", *TRACE_CONTEXT_HEADERS)


class _Relayed:
    """An answer that the proxy sends itself; ends when the client leaves."""

    def __init__(self, state: RouterState, request: ProxyRequest) -> None:
        self._state = state
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relaying = self._state.proxy.relay(self._request, send)
        await run_unless_gone(receive, relaying, Departure.of(scope))


class _Resumable:
    """Likewise, of an answer that the client can come back to: that does not end with it."""

    def __init__(self, state: RouterState, request: ProxyRequest, asked: Asked) -> None:
        self._state = state
        self._request = request
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._state.resumption.answer(self._request, self._asked, send)
        await run_unless_gone(receive, answering, Departure.of(scope))


class Routes:
    """The endpoints over one `RouterState`."""

    def __init__(self, state: RouterState) -> None:
        self.state = state
        self.calls = Calls(state)

    async def generate(self, request: Request) -> Any:
        """Every route whose prompt decides where it goes."""
        raw, headers = await self._body(request), _headers(request)
        parsed = parse_body(raw, _GENERATION[request.scope["path"]])
        has_earlier = isinstance(parsed, ResponsesRequest) and parsed.previous_response_id
        body = _generation(parsed)
        body.sampling_params(self.state.defaults, max_tokens=None)  # the replica's checks, early
        call = self.calls.of(request, raw, body.model, body)
        if isinstance(parsed, CountTokensRequest):
            uncounted = replace(call.terms, counts_tokens=False, num_output_tokens=0)
            call = replace(call, terms=uncounted)
        key = await self._key(headers, call, body, raw)
        if has_earlier:  # a replica has what was said before; the tokens are only of the rest
            key = replace(key, tokens=None)
        proxied = self._proxied(request, headers, call, raw, key, is_stream=body.stream)
        if (resumable := self._asked(request, headers, raw, body)) is not None:
            return _Resumable(self.state, proxied, resumable)
        return _Relayed(self.state, proxied)

    async def pool(self, request: Request) -> Any:
        """Every route of pooling models."""
        raw = await self._body(request)
        body = parse_body(raw, POOLING[request.scope["path"]])
        call = self.calls.of(request, raw, body.model, body)
        key = pinned(pooling_key(body), call.terms)
        return _Relayed(self.state, self._proxied(request, _headers(request), call, raw, key))

    async def tokenize(self, request: Request) -> Any:
        return await self._plain(request, TokenizeRequest)

    async def detokenize(self, request: Request) -> Any:
        return await self._plain(request, DetokenizeRequest)

    async def models(self, request: Request) -> Response:
        names = self.calls.names(caller_of(request).tenant)
        return json_response(ModelList([self._model(*each) for each in sorted(names.items())]))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.state.is_healthy else 503)

    async def ready(self, request: Request) -> Response:
        stage = self.state.stage
        return json_response({"status": stage, "stage": stage}, 200 if stage == "ready" else 503)

    async def version(self, request: Request) -> Response:
        return json_response({"version": metadata.version("octavo")})

    async def metrics(self, request: Request) -> Response:
        self.state.measure()
        return Response(
            self.state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def recall(self, request: Request) -> Response:
        """Why a recent request went where it went."""
        self._check_may_look(request)
        decision = self.state.decider.recall(request.path_params["request_id"])
        if decision is None:
            raise NotFoundError("no recent request has this id; it is the x-request-id header")
        return json_response(decision.as_json())

    async def dry_run(self, request: Request) -> Response:
        """Where a chat or completion request would go, without sending it."""
        raw = await self._body(request)
        # Told apart before parsing: each kind has its own complaints about a wrong field.
        path = "/v1/chat/completions" if b'"messages"' in raw else "/v1/completions"
        body = _generation(parse_body(raw, _GENERATION[path]))
        self._check_may_look(request)
        call = self.calls.of(request, raw, body.model, body)
        key = await self._key(_headers(request), call, body, raw)
        decision = self.state.decider.choose(
            call.deployment, request.state.request_id, call.model, key, is_dry_run=True
        )
        return json_response(decision.as_json())

    async def _key(
        self, headers: Mapping[str, str], call: Call, body: GenerationRequest, raw: bytes
    ) -> PromptKey:
        terms, deployment = call.terms, call.deployment
        policy = deployment.policy_for(terms.policy)
        reads_session = policy.reads_session or self.state.capture is not None
        session = session_of(headers, raw) if reads_session else None
        key = await self.state.decider.prompt_key(
            deployment,
            body,
            session=session,
            overrides=terms.overrides,
            declared=terms.shared_prefixes,
        )
        return pinned(key, terms)

    def _asked(
        self, request: Request, headers: Mapping[str, str], raw: bytes, body: GenerationRequest
    ) -> Asked | None:
        """Whether the client wants to come back to the answer. Raises `ValidationError`."""
        tenant = caller_of(request).tenant.name
        if self.state.tenants is None:
            tenant = headers.get("authorization") or headers.get("x-api-key") or ""
        return asked(
            headers, request.scope["path"], raw, tenant=tenant, is_stream=bool(body.stream)
        )

    async def _plain(
        self, request: Request, kind: type[TokenizeRequest] | type[DetokenizeRequest]
    ) -> Any:
        raw = await self._body(request)
        call = self.calls.of(request, raw, parse_body(raw, kind).model)
        proxied = self._proxied(request, _headers(request), call, raw, PromptKey())
        return _Relayed(self.state, proxied)

    def _check_may_look(self, request: Request) -> None:
        """Who may pick replicas may see how they are picked."""
        check_may(caller_of(request), "replica", "where requests go, nor see it")

    def _model(self, name: str, deployment: Deployment) -> Model:
        """As a replica that serves it tells; before there is one, what is registered."""
        created = int(deployment.created_at) or self.state.started_at
        for record in deployment.replicas.records:
            if name in record.served_names:
                return Model(name, created, record.max_model_len, record.model)
            if name in deployment.replicas.adapters:
                root = deployment.replicas.adapters.origin(name)
                return Model(name, created, record.max_model_len, root, parent=record.model)
        return Model(name, created, None)

    def _proxied(
        self,
        request: Request,
        headers: Mapping[str, str],
        call: Call,
        raw: bytes,
        key: PromptKey,
        *,
        is_stream: bool = False,
    ) -> ProxyRequest:
        return ProxyRequest(
            deployment=call.deployment,
            request_id=request.scope["state"]["request_id"],
            path=request.scope["path"],
            body=raw,
            model=call.model,
            key=key,
            headers=self._forwarded(headers),
            is_stream=is_stream,
            terms=call.terms,
        )

    def _forwarded(self, headers: Mapping[str, str]) -> dict[str, str]:
        forwarded = {name: headers[name] for name in _FORWARDED if name in headers}
        if (authorization := self._authorization(headers)) is not None:
            forwarded["authorization"] = authorization
        return forwarded

    def _authorization(self, headers: Mapping[str, str]) -> str | None:
        """What the replica is to see: None where the router has a key of its own for replicas, or
        keys are those of tenants.
        """
        if self.state.options.replica_api_key is not None or self.state.tenants is not None:
            return None
        given = headers.get("authorization")
        if given is None and (key := headers.get("x-api-key")) is not None:
            return f"Bearer {key}"
        return given

    async def _body(self, request: Request) -> bytes:
        if self.state.is_draining:
            raise UnavailableError("the router is stopping; try another one")
        return await read_body(request.scope, request.receive, self.state.max_body_bytes)


def _headers(request: Request) -> dict[str, str]:
    """By name, of those with one name the first: looked up many times, unlike Starlette's, where
    each time walks through all.
    """
    raw = reversed(request.scope["headers"])
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def _generation(body: _Body) -> GenerationRequest:
    """The chat or text completion that a request of any API is."""
    if isinstance(body, ChatCompletionRequest | CompletionRequest):
        return body
    return body.to_chat()


def create_app(state: RouterState) -> Starlette:
    """The router's ASGI application. Starts and stops nothing: `RouterState` does."""
    routes = Routes(state)
    return make_app(
        [
            *(operations.post(path, routes.generate) for path in _GENERATION),
            *(operations.post(path, routes.pool) for path in POOLING),
            *(state.batches.routes() if state.batches is not None else ()),
            operations.post("/tokenize", routes.tokenize),
            operations.post("/detokenize", routes.detokenize),
            operations.get("/v1/models", routes.models),
            operations.get("/health", routes.health),
            operations.get("/ready", routes.ready),
            operations.get("/version", routes.version),
            operations.get("/metrics", routes.metrics),
            ApiRoute(
                "/debug/route",
                routes.dry_run,
                Operation(
                    "Where a chat or text completion would go.",
                    (ChatCompletionRequest, CompletionRequest),
                    {200: (Content(),)},
                    errors=(404,),
                ),
                "POST",
            ),
            ApiRoute(
                "/debug/route/{request_id}",
                routes.recall,
                Operation(
                    "Why a recent request went where it went.",
                    answers={200: (Content(),)},
                    errors=(404,),
                ),
                "GET",
            ),
        ],
        state,
        state.options,
        title="Octavo router",
        tracing=state.tracing,
        refusals=_REFUSALS,
        guard=Middleware(TenantMiddleware, source=state.tenants) if state.tenants else None,
    )
