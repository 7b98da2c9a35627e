"""The HTTP face of one replica: routes, and how each request becomes a job for the engine."""

import asyncio
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo_protocol.asgi import (
    parse_body,
    read_body,
    run_unless_gone,
)
from octavo_protocol.errors import ValidationError
from octavo_protocol.http_app import json_response, make_app
from octavo_protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from octavo_protocol.openai.answers import (
    DetokenizeResponse,
    Model,
    ModelList,
    TokenizeResponse,
)
from octavo_protocol.sampling_params import MAX_N, RequestOutputKind, SamplingParams
from octavo_runtime.server import chat, completions
from octavo_runtime.server.events import EventResponse
from octavo_runtime.server.generation import GenerationJob
from octavo_runtime.server.state import ServerState

# Longer texts are tokenized in a thread: on the event loop they would delay other streams.
_INLINE_CHARS = 20_000
_DEFAULT_COMPLETION_TOKENS = 16
_MAX_PROMPTS = 1024


class Routes:
    """The endpoints of one replica over its `ServerState`."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._created = int(time.time())

    async def chat_completions(self, request: Request) -> Any:
        state = self.state
        info = state.check_accepts()
        body = parse_body(await self._body(request), ChatCompletionRequest)
        model = state.check_model(body.model)
        num_chars = sum(len(m.text()) for m in body.messages)
        tokenizer = state.llm.tokenizer
        prompt = await _maybe_in_thread(num_chars, lambda: tokenizer.chat_token_ids(body))
        params = body.sampling_params(state.llm.default_sampling_params, max_tokens=None)
        job = _job("chatcmpl", request, body, [prompt], params, info.vocab_size)
        if body.stream:
            return EventResponse(chat.stream_answer(state, body, model, job))
        return await self._whole(request, chat.whole_answer(state, body, model, job))

    async def completions(self, request: Request) -> Any:
        state = self.state
        info = state.check_accepts()
        body = parse_body(await self._body(request), CompletionRequest)
        model = state.check_model(body.model)
        prompts = body.prompts()
        if len(prompts) > _MAX_PROMPTS:
            raise ValidationError(
                f"at most {_MAX_PROMPTS} prompts in one request, got {len(prompts)}",
                parameter="prompt",
            )
        if len(prompts) > 1 and len(prompts) * body.n > MAX_N:
            raise ValidationError(
                f"at most {MAX_N} samples in one request, got {len(prompts)} prompts x n={body.n}",
                parameter="n",
            )
        tokenizer = state.llm.tokenizer
        num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        token_ids = await _maybe_in_thread(
            num_chars,
            lambda: [
                tokenizer.prompt_token_ids(p, add_special_tokens=body.add_special_tokens)
                for p in prompts
            ],
        )
        params = body.sampling_params(
            state.llm.default_sampling_params, max_tokens=_DEFAULT_COMPLETION_TOKENS
        )
        job = _job("cmpl", request, body, token_ids, params, info.vocab_size)
        echoes = [""] * len(prompts)
        if body.echo:
            echoes = [p if isinstance(p, str) else tokenizer.decode(p) for p in prompts]
        if body.stream:
            return EventResponse(completions.stream_answer(state, body, model, job, echoes))
        return await self._whole(request, completions.whole_answer(state, body, model, job, echoes))

    async def models(self, request: Request) -> Response:
        return json_response(ModelList([self._model(name) for name in self.state.served_names]))

    async def model(self, request: Request) -> Response:
        return json_response(self._model(self.state.check_model(request.path_params["name"])))

    async def tokenize(self, request: Request) -> Response:
        state = self.state
        info = state.check_accepts()
        body = parse_body(await self._body(request), TokenizeRequest)
        state.check_model(body.model)
        tokenizer = state.llm.tokenizer
        if body.prompt is not None:
            text = body.prompt
            special = body.add_special_tokens is not False
            tokens = await _maybe_in_thread(
                len(text), lambda: tokenizer.encode(text, add_special_tokens=special)
            )
        else:
            tokens = await _maybe_in_thread(_INLINE_CHARS, lambda: tokenizer.chat_token_ids(body))
        strings = [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
        return json_response(TokenizeResponse(len(tokens), info.max_model_len, tokens, strings))

    async def detokenize(self, request: Request) -> Response:
        info = self.state.check_accepts()
        body = parse_body(await self._body(request), DetokenizeRequest)
        self.state.check_model(body.model)
        _check_vocabulary(info.vocab_size, [body.tokens], name="tokens")
        text = self.state.llm.tokenizer.decode(body.tokens, skip_special_tokens=False)
        return json_response(DetokenizeResponse(text))

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.state.llm.is_healthy else 503)

    async def ready(self, request: Request) -> Response:
        stage = self.state.stage
        return json_response({"status": stage, "stage": stage}, 200 if stage == "ready" else 503)

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

    async def _whole(self, request: Request, work: Any) -> Response:
        return json_response(await run_unless_gone(request.receive, work))

    def _model(self, name: str) -> Model:
        info = self.state.llm.info
        limit = info.max_model_len if info else None
        return Model(name, self._created, limit, root=self.state.served_names[0])


def create_app(state: ServerState) -> Starlette:
    """The ASGI application of one replica. Starts and stops nothing."""
    routes = Routes(state)
    return make_app(
        [
            Route("/v1/chat/completions", routes.chat_completions, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/models", routes.models, methods=["GET"]),
            Route("/v1/models/{name:path}", routes.model, methods=["GET"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/health", routes.health, methods=["GET"]),
            Route("/ready", routes.ready, methods=["GET"]),
            Route("/version", routes.version, methods=["GET"]),
            Route("/metrics", routes.metrics, methods=["GET"]),
            Route("/octavo/tokenizer", routes.tokenizer, methods=["GET"]),
        ],
        state,
    )


def _job(
    kind: str,
    request: Request,
    body: ChatCompletionRequest | CompletionRequest,
    prompts: list[list[int]],
    params: SamplingParams,
    vocab_size: int,
) -> GenerationJob:
    _check_vocabulary(vocab_size, prompts)
    params.output_kind = RequestOutputKind.DELTA if body.stream else RequestOutputKind.FINAL_ONLY
    request_id = request.state.request_id
    return GenerationJob(
        answer_id=f"{kind}-{body.request_id or request_id}",
        request_id=request_id,
        prompts=prompts,
        params=params,
        priority=body.priority,
        cache_salt=body.cache_salt or "",
    )


def _check_vocabulary(vocab_size: int, prompts: Any, *, name: str = "prompt") -> None:
    for prompt in prompts:
        if prompt and not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise ValidationError(
                f"{name}: token ids must lie between 0 and {vocab_size - 1}", parameter=name
            )


async def _maybe_in_thread(num_chars: int, work: Callable[[], Any]) -> Any:
    if num_chars < _INLINE_CHARS:
        return work()
    return await asyncio.to_thread(work)
