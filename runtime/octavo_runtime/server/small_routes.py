"""Routes that generate nothing: models, tokens, health, load, metrics."""

import time
from importlib import metadata

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo_protocol.asgi import parse_body, read_body
from octavo_protocol.http_app import json_response
from octavo_protocol.openai import DetokenizeRequest, TokenizeRequest
from octavo_protocol.openai.answers import (
    DetokenizeResponse,
    Model,
    ModelList,
    TokenizeResponse,
)
from octavo_runtime.server.requests import (
    INLINE_CHARS,
    check_template,
    check_vocabulary,
    maybe_in_thread,
)
from octavo_runtime.server.state import ServerState


class SmallRoutes:
    """The small endpoints of one replica over its `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._created = int(time.time())

    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/load", self.load, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/octavo/tokenizer", self.tokenizer, methods=["GET"]),
        ]

    async def models(self, request: Request) -> Response:
        return json_response(ModelList([self._model(name) for name in self.state.served_names]))

    async def model(self, request: Request) -> Response:
        return json_response(self._model(self.state.check_model(request.path_params["name"])))

    async def tokenize(self, request: Request) -> Response:
        state = self.state
        info = state.check_accepts()
        body = parse_body(await self._body(request), TokenizeRequest)
        state.check_model(body.model)
        check_template(state, body)
        tokenizer = state.llm.tokenizer
        if body.prompt is not None:
            text = body.prompt
            special = body.add_special_tokens is not False
            tokens = await maybe_in_thread(
                len(text), lambda: tokenizer.encode(text, add_special_tokens=special)
            )
        else:
            tokens = await maybe_in_thread(INLINE_CHARS, lambda: tokenizer.chat_token_ids(body))
        strings = [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
        return json_response(TokenizeResponse(len(tokens), info.max_model_len, tokens, strings))

    async def detokenize(self, request: Request) -> Response:
        info = self.state.check_accepts()
        body = parse_body(await self._body(request), DetokenizeRequest)
        self.state.check_model(body.model)
        check_vocabulary(info.vocab_size, [body.tokens], parameter="tokens")
        text = self.state.llm.tokenizer.decode(body.tokens, skip_special_tokens=False)
        return json_response(DetokenizeResponse(text))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.state.llm.is_healthy else 503)

    async def ready(self, request: Request) -> Response:
        stage = self.state.stage
        return json_response({"status": stage, "stage": stage}, 200 if stage == "ready" else 503)

    async def load(self, request: Request) -> Response:
        is_tracked = self.state.options.enable_server_load_tracking
        return json_response({"server_load": self.state.num_generating if is_tracked else 0})

    async def version(self, request: Request) -> Response:
        return json_response({"version": metadata.version("octavo")})

    async def metrics(self, request: Request) -> Response:
        return Response(
            self.state.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def tokenizer(self, request: Request) -> Response:
        return json_response(self.state.llm.tokenizer.bundle)

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.scope, request.receive, self.state.max_body_bytes)

    def _model(self, name: str) -> Model:
        info = self.state.llm.info
        limit = info.max_model_len if info else None
        return Model(name, self._created, limit, root=self.state.served_names[0])
