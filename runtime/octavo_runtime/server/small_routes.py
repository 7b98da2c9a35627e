"""Routes that generate nothing: models, tokens, health, load, metrics."""

import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from octavo_protocol import operations
from octavo_protocol.asgi import parse_body
from octavo_protocol.http_app import json_response
from octavo_protocol.openai import DetokenizeRequest, TokenizeRequest
from octavo_protocol.openai.answers import (
    DetokenizeResponse,
    Model,
    ModelList,
    TokenizeResponse,
)
from octavo_protocol.openapi import ApiRoute, Content, Operation
from octavo_protocol.operations import Readiness, Version
from octavo_runtime.models.adapter_source import shown_source
from octavo_runtime.server.received import read_overridden
from octavo_runtime.server.requests import (
    INLINE_CHARS,
    check_template,
    check_vocabulary,
    maybe_in_thread,
)
from octavo_runtime.server.state import ServerState

_B = TypeVar("_B", TokenizeRequest, DetokenizeRequest)


class Load(msgspec.Struct):
    server_load: int


class SmallRoutes:
    """The small endpoints of one replica over its `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._created = int(time.time())

    def routes(self) -> list[ApiRoute]:
        alive = operations.GET["/health"]
        routes = [
            operations.get("/v1/models", self.models),
            ApiRoute(
                "/v1/models/{name:path}",
                self.model,
                Operation("One served model.", answers={200: (Content(Model),)}, errors=(404,)),
                "GET",
            ),
            operations.post("/tokenize", self.tokenize),
            operations.post("/detokenize", self.detokenize),
            operations.get("/health", self.health),
            ApiRoute("/ping", self.health, alive, "GET", "POST"),
            operations.get("/ready", self.ready),
            _get("/load", self.load, "Requests that generate now.", Load),
            operations.get("/version", self.version),
            operations.get("/metrics", self.metrics),
            _get("/octavo/tokenizer", self.tokenizer, "What tokenizes, for routers.", None),
        ]
        if self.state.options.enable_tokenizer_info_endpoint:
            routes.append(
                _get("/tokenizer_info", self.tokenizer_info, "The tokenizer's settings.", None)
            )
        return routes

    async def models(self, request: Request) -> Response:
        adapters = [each.name for each in self.state.llm.adapters.book]
        names = [*self.state.served_names, *adapters]
        return json_response(ModelList([self._model(name) for name in names]))

    async def model(self, request: Request) -> Response:
        return json_response(self._model(self.state.check_model(request.path_params["name"])))

    async def tokenize(self, request: Request) -> Response:
        state = self.state
        info = state.check_accepts()
        body = await self._body(request, TokenizeRequest)
        state.check_model(body.model)
        check_template(state, body)
        tokenizer = state.llm.tokenizer

        def tokenize() -> tuple[list[int], list[str] | None]:
            if body.prompt is not None:
                special = body.add_special_tokens is not False
                tokens = tokenizer.encode(body.prompt, add_special_tokens=special)
            else:
                tokens = tokenizer.chat_token_ids(body)
            strings = [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
            return tokens, strings

        num_chars = INLINE_CHARS if body.prompt is None else len(body.prompt)
        tokens, strings = await maybe_in_thread(num_chars, tokenize)
        return json_response(TokenizeResponse(len(tokens), info.max_model_len, tokens, strings))

    async def detokenize(self, request: Request) -> Response:
        info = self.state.check_accepts()
        body = await self._body(request, DetokenizeRequest)
        self.state.check_model(body.model)
        check_vocabulary(info.vocab_size, [body.tokens], parameter="tokens")
        tokenizer = self.state.llm.tokenizer
        text = await maybe_in_thread(
            len(body.tokens), lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
        )
        return json_response(DetokenizeResponse(text))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.state.llm.is_healthy else 503)

    async def ready(self, request: Request) -> Response:
        stage = self.state.stage
        return json_response(Readiness(stage, stage), 200 if stage == "ready" else 503)

    async def load(self, request: Request) -> Response:
        is_tracked = self.state.options.enable_server_load_tracking
        return json_response(Load(self.state.num_generating if is_tracked else 0))

    async def version(self, request: Request) -> Response:
        return json_response(Version(metadata.version("octavo")))

    async def metrics(self, request: Request) -> Response:
        return Response(
            self.state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def tokenizer(self, request: Request) -> Response:
        return json_response(self.state.llm.tokenizer.bundle)

    async def tokenizer_info(self, request: Request) -> Response:
        bundle = self.state.llm.tokenizer.bundle
        return json_response(
            {
                **bundle.special_tokens,
                "chat_template": bundle.chat_template,
                "vocab_size": self.state.llm.tokenizer.vocab_size,
                "model_max_length": self.state.check_accepts().max_model_len,
            }
        )

    async def _body(self, request: Request, kind: type[_B]) -> _B:
        raw, overrides = await read_overridden(self.state, request)
        return overrides.applied_to(parse_body(raw, kind))

    def _model(self, name: str) -> Model:
        info = self.state.llm.info
        limit = info.max_model_len if info else None
        own = self.state.served_names[0]
        adapter = self.state.llm.adapters.book.get(name)
        if adapter is None or name in self.state.served_names:
            return Model(name, self._created, limit, root=own)
        root = shown_source(adapter.request.lora_path)
        parent = adapter.request.base_model_name or own
        return Model(name, self._created, limit, root=root, parent=parent)


def _get(path: str, endpoint: Callable[..., Any], summary: str, answer: Any) -> ApiRoute:
    return ApiRoute(path, endpoint, Operation(summary, answers={200: (Content(answer),)}), "GET")
