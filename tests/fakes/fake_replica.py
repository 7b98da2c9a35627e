"""A replica without a model: it speaks the replica's HTTP and Redis, and misbehaves on demand.

    async with FakeReplica("a", redis_url=url, keys=keys) as replica:
        replica.behaviour.drop_after_chunks = 3

Its prefix cache is real in that it remembers block hashes: what it reports as cached is true unless
it is told to lie. It answers with the words "w0 w1 w2 …", one per chunk. With `max_adapters` in its
record it loads and unloads adapters, and knows no other model than it has.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import msgspec
from aiohttp import web

from octavo_protocol.continuation import CONTINUE, TRACE_HEADER, ContinuationRequest, TraceEntry
from octavo_protocol.errors import error_body
from octavo_protocol.hashing import HashIdentity, block_hashes, cached_tokens
from octavo_protocol.keys import Keys
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.openai.answers import SSE_DONE, sse
from octavo_protocol.overrides import RequestOverrides, split_overrides
from octavo_protocol.records import adapter_origin
from octavo_protocol.tokenizer import Tokenizer
from tests.fakes.fake_presence import FakePresence, new_record
from tests.fakes.tiny_model import tiny_bundle


@dataclass(slots=True)
class Behaviour:
    """What a fake does wrong, from the next request on.

    status: answers this instead. drop_after_chunks: closes the connection after so many chunks (0:
    before the first byte; in a whole answer, in the middle of its body). is_torn: a stream is
    closed in the middle of an event. ends_early: a stream is closed in good order, but too soon.
    is_traced: streams can go on elsewhere, where the router asks for it. is_stalled: sends nothing,
    and waits. cached_tokens: reported instead of the truth. is_forgetful: caches nothing.
    first_token_s, chunk_s: pace. gate: streams wait for it after their first event. is_instant: it
    does not look at the prompt; the words of its streams are the monotonic times at which they were
    sent. adapter_error: what loads are refused with, by adapter. adapter_load_s: their time.
    """

    status: int | None = None
    drop_after_chunks: int | None = None
    is_stalled: bool = False
    cached_tokens: int | None = None
    is_forgetful: bool = False
    is_instant: bool = False
    is_torn: bool = False
    ends_early: bool = False
    is_traced: bool = True
    first_token_s: float = 0.0
    chunk_s: float = 0.0
    gate: asyncio.Event | None = None
    num_chunks: int = 8
    adapter_load_s: float = 0.0
    adapter_errors: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived."""

    path: str
    body: bytes
    headers: dict[str, str]


@dataclass(slots=True)
class Seen:
    """What a fake counts. num_abandoned: requests whose client left before the end. loads: what it
    was asked to load.
    """

    requests: list[Received] = field(default_factory=list)
    num_open: int = 0
    num_abandoned: int = 0
    loads: list[dict[str, Any]] = field(default_factory=list)


class FakeReplica:
    """An async context manager; serves on a free loopback port while it is open.

    fields: of its `ReplicaRecord`, over the defaults of `new_record`; the adapters that it begins
    with are those of `adapter_sources`.
    """

    def __init__(
        self, replica_id: str, *, redis_url: str | None = None, keys: Keys, **fields: Any
    ) -> None:
        self.behaviour = Behaviour()
        self.seen = Seen()
        self.record = new_record(replica_id, **{"tokenizer_id": tiny_bundle().id, **fields})
        self.adapters = dict(self.record.adapter_sources)  # each with its origin
        self._tell_adapters()
        self.presence: FakePresence | None = None
        self._redis_url = redis_url
        self._keys = keys
        self._tokenizer = Tokenizer(tiny_bundle())
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "FakeReplica":
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._generate),
                web.post("/v1/completions", self._generate),
                web.post("/v1/responses", self._generate),
                web.post(CONTINUE + "/v1/chat/completions", self._go_on),
                web.post(CONTINUE + "/v1/completions", self._go_on),
                web.post("/tokenize", self._tokenize),
                web.post("/v1/load_lora_adapter", self._load_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_adapter),
                web.get("/v1/models", self._models),
                web.get("/octavo/tokenizer", self._bundle),
            ]
        )
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.record.url = f"http://127.0.0.1:{port}"
        if self._redis_url is not None:
            self.presence = FakePresence(self._redis_url, self._keys, lambda: self.record)
            await self.presence.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close(is_clean=True)

    async def kill(self) -> None:
        """Gone without a word: connections break, the record stays until it expires."""
        await self._close(is_clean=False)

    async def set_draining(self) -> None:
        """Refuses new work from now on, and says so in its record."""
        self.record.draining = True
        if self.presence is not None:
            await self.presence.beat()

    def forget_adapter(self, name: str, *, is_told: bool = True) -> None:
        """Evicts it. Not told: its record goes on to list it."""
        self.adapters.pop(name)
        if is_told:
            self._tell_adapters()

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["lora_name"]
        self.seen.loads.append(body)
        await asyncio.sleep(self.behaviour.adapter_load_s)
        if (error := self.behaviour.adapter_errors.get(name)) is not None:
            return _refusal(*error)
        if name in self.adapters and not body.get("load_inplace"):
            return _refusal(400, f"The lora adapter '{name}' has already been loaded.")
        self.adapters[name] = adapter_origin(body["lora_path"], body.get("revision"))
        self._tell_adapters()
        return web.Response(text="Success")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        self.forget_adapter((await request.json())["lora_name"])
        return web.Response(text="Success")

    def _tell_adapters(self) -> None:
        self.record.adapters = self.record.loaded_adapters = list(self.adapters)
        self.record.adapter_versions = dict(self.adapters)
        self.record.adapter_sources = dict(self.adapters)

    async def _close(self, *, is_clean: bool) -> None:
        presence, self.presence = self.presence, None
        runner, self._runner = self._runner, None
        if presence is not None:
            await presence.stop(is_clean=is_clean)
        if runner is not None:
            assert runner.server is not None
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.seen.requests.append(Received(request.path, raw, _headers(request)))
        self.seen.num_open += 1
        try:
            body, overrides = split_overrides(request.headers, raw)
            return await self._answer(request, _overridden(json.loads(body), overrides))
        except (asyncio.CancelledError, ConnectionResetError):
            self.seen.num_abandoned += 1
            raise
        finally:
            self.seen.num_open -= 1

    async def _go_on(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.seen.requests.append(Received(request.path, raw, _headers(request)))
        body, overrides = split_overrides(request.headers, raw)
        given = ContinuationRequest.model_validate_json(body)
        given.request = _overridden(given.request, overrides)
        num_said = sum(len(entry.token_ids) for entry in given.trace)
        return await self._answer(request, given.request, given.head, num_said)

    async def _answer(
        self,
        request: web.Request,
        data: dict[str, Any],
        head: str = f"1-{0:032}",
        num_said: int = 0,
    ) -> web.StreamResponse:
        doing = self.behaviour
        if self.record.draining:
            return _refusal(503, "the server takes no requests now: draining")
        if doing.status is not None:
            return _refusal(doing.status, "as told")
        if not self._knows(data.get("model")):
            message = f"the model {data['model']!r} does not exist"
            return _refusal(404, message, code="model_not_found")
        if doing.is_stalled:
            await asyncio.Event().wait()
        prompt_tokens, num_cached = 1, 0
        if not doing.is_instant:
            path = request.path.removeprefix(CONTINUE)
            prompt_tokens, num_cached = await self._prefill(path, data)
        await asyncio.sleep(doing.first_token_s)
        if doing.cached_tokens is not None:
            num_cached = doing.cached_tokens
        if data.get("stream"):
            is_traced = doing.is_traced and TRACE_HEADER in request.headers
            events = self._events(data, request.path, prompt_tokens, num_cached, num_said)
            return await self._stream(request, events, head if is_traced else None)
        answer = _whole(request.path, doing.num_chunks, prompt_tokens, num_cached)
        if doing.drop_after_chunks is None:
            return web.json_response(answer)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        if doing.drop_after_chunks > 0:
            await response.prepare(request)
            await response.write(json.dumps(answer).encode()[:40])
        _abort(request)
        return response

    def _knows(self, model: str | None) -> bool:
        names = {None, *self.record.served_names, *self.adapters}
        return not self.record.max_adapters or model in names

    async def _prefill(self, path: str, data: dict[str, Any]) -> tuple[int, int]:
        """Prompt tokens, and those of them that were cached; the rest is cached from now on."""
        if path == "/v1/chat/completions":
            chat = ChatCompletionRequest.model_validate(data)
            token_ids, salt = self._tokenizer.chat_token_ids(chat), chat.cache_salt
        else:
            text = CompletionRequest.model_validate(data)
            token_ids = self._tokenizer.prompt_token_ids(text.prompts()[0])
            salt = text.cache_salt
        if self.presence is None:
            return len(token_ids), 0
        version = self.adapters.get(data.get("model", ""))
        adapter = "" if version is None else f"{data['model']}@{version}"
        extra = HashIdentity(self.record.cache_model, adapter, salt or "").extra()
        hashes = block_hashes(token_ids, self.record.block_size, extra)
        held = self.presence.cached
        depth = next((i for i, each in enumerate(hashes) if each not in held), len(hashes))
        if not self.behaviour.is_forgetful:
            await self.presence.store(hashes)
        return len(token_ids), cached_tokens(depth, self.record.block_size, len(token_ids))

    async def _stream(
        self,
        request: web.Request,
        events: AsyncIterator[tuple[bytes, TraceEntry | None]],
        head: str | None,
    ) -> web.StreamResponse:
        doing = self.behaviour
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        if head is not None:
            response.headers[TRACE_HEADER] = head
        num_sent = 0
        async for event, entry in events:
            if num_sent == doing.drop_after_chunks:
                if doing.is_torn:
                    await response.write(event[: len(event) // 2])
                if not doing.ends_early:
                    _abort(request)
                return response
            if not response.prepared:
                await response.prepare(request)
            mark = entry.line() if entry is not None and head is not None else b""
            await response.write(event + mark)
            num_sent += 1
        await response.write_eof()
        return response

    async def _events(
        self,
        data: dict[str, Any],
        path: str,
        prompt_tokens: int,
        num_cached: int,
        num_said: int,
    ) -> AsyncIterator[tuple[bytes, TraceEntry | None]]:
        """Events from the word after `num_said` on, each with its entry of the trace."""
        doing = self.behaviour
        for index in range(num_said, doing.num_chunks):
            if index and doing.gate is not None:
                await doing.gate.wait()
            if index and doing.chunk_s:
                await asyncio.sleep(doing.chunk_s)
            word = f"{time.monotonic()} " if doing.is_instant else f"w{index} "
            chunk = _chunk(path, word, is_last=index == doing.num_chunks - 1)
            yield sse(chunk), TraceEntry(0, [index])
        if (data.get("stream_options") or {}).get("include_usage"):
            usage = _usage(prompt_tokens, doing.num_chunks, num_cached)
            yield sse({**_envelope(path, is_chunk=True), "choices": [], "usage": usage}), None
        yield SSE_DONE, None

    async def _tokenize(self, request: web.Request) -> web.Response:
        raw = await request.read()
        self.seen.requests.append(Received(request.path, raw, _headers(request)))
        tokens = self._tokenizer.encode(json.loads(raw)["prompt"])
        return web.json_response({"count": len(tokens), "tokens": tokens, "max_model_len": 4096})

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "max_model_len": 4096} for name in self.record.served_names]
        return web.json_response({"object": "list", "data": models})

    async def _bundle(self, request: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode(tiny_bundle()), content_type="application/json"
        )


def words(num_chunks: int) -> str:
    """The text of a whole answer."""
    return "".join(f"w{index} " for index in range(num_chunks))


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _refusal(status: int, message: str, *, code: str | None = None) -> web.Response:
    body = error_body(message, error_type="service_unavailable", code=code or status)
    return web.json_response(body, status=status)


def _envelope(path: str, *, is_chunk: bool) -> dict[str, Any]:
    is_chat = path.endswith("/v1/chat/completions")
    kind = ("chat.completion" + ".chunk" * is_chunk) if is_chat else "text_completion"
    return {"id": "fake-1", "object": kind, "created": 1, "model": "fake"}


def _chunk(path: str, text: str, *, is_last: bool) -> dict[str, Any]:
    content = {"delta": {"content": text}} if "chat" in path else {"text": text}
    choice = {"index": 0, **content, "finish_reason": "length" if is_last else None}
    return {**_envelope(path, is_chunk=True), "choices": [choice]}


def _whole(path: str, num_chunks: int, prompt_tokens: int, num_cached: int) -> dict[str, Any]:
    text = words(num_chunks)
    message = {"role": "assistant", "content": text}
    content = {"message": message} if "chat" in path else {"text": text}
    return {
        **_envelope(path, is_chunk=False),
        "choices": [{"index": 0, **content, "finish_reason": "length"}],
        "usage": _usage(prompt_tokens, num_chunks, num_cached),
    }


def _usage(prompt_tokens: int, completion_tokens: int, num_cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def _overridden(data: dict[str, Any], overrides: RequestOverrides) -> dict[str, Any]:
    changed = {name: getattr(overrides, name) for name in ("model", "cache_salt", "priority")}
    return data | {name: value for name, value in changed.items() if value is not None}


def _headers(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}
