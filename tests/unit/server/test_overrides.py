"""A replica takes a router's changes in place of the body's fields, and its tokens as its own."""

import json
import re
from typing import Any

import httpx
import msgspec
import pytest
from tests.fakes.fake_llm import FakeLLM
from tests.unit.server.conftest import MAX_BODY_BYTES, make_state

from octavo_protocol.anthropic import MessagesRequest
from octavo_protocol.continuation import CONTINUE
from octavo_protocol.openai import ChatCompletionRequest, CompletionRequest
from octavo_protocol.openai.responses import ResponsesRequest
from octavo_protocol.overrides import TOKENS_HEADER, PromptTokens, RequestOverrides
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.server.app import create_app
from octavo_runtime.server.options import ApiOptions

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": EMPTY}}
LONG = [
    {"role": role, "content": f"{role} {number} says <eos> é 🙂 " * 9}
    for number in range(4)
    for role in ("user", "assistant")
]
TOOLING = ApiOptions(enable_auto_tool_choice=True, tool_call_parser="hermes")
TEMPLATE = (
    "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "<eos>{% endfor %}assistant:"
)
_Kind = type[ChatCompletionRequest | CompletionRequest | MessagesRequest | ResponsesRequest]
KINDS: dict[str, _Kind] = {
    CHAT: ChatCompletionRequest,
    TEXT: CompletionRequest,
    MESSAGES: MessagesRequest,
    RESPONSES: ResponsesRequest,
}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI, "max_tokens": 4},
    TEXT: {"prompt": "Hi", "max_tokens": 4},
    MESSAGES: {"model": "first", "messages": HI, "max_tokens": 4},
    RESPONSES: {"input": "Hi", "max_output_tokens": 4},
}


class Server:
    """One replica; what its engine got is in `llm.requests`."""

    def __init__(self, options: ApiOptions | None = None) -> None:
        self.llm = FakeLLM(script="abcdef")
        self.app = create_app(make_state(self.llm, options))

    @property
    def tokenizer_id(self) -> str:
        return self.llm.tokenizer.id

    async def post(
        self, path: str, body: dict[str, Any] | bytes, overrides: RequestOverrides, **headers: str
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        raw = body if isinstance(body, bytes) else httpx.Request("POST", "/", json=body).content
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as http:
            return await http.post(
                path,
                content=overrides.framed(raw),
                headers={**overrides.headers, "x-request-id": "r", **headers},
            )


@pytest.mark.parametrize("path", BODIES)
async def test_salt_priority_and_model_replace_the_clients_own(path: str) -> None:
    server = Server()
    body = {**BODIES[path], "model": "alias", "cache_salt": "mine", "priority": 7}
    overrides = RequestOverrides(model="second/alias", cache_salt="tenant é", priority=-2)
    answer = await server.post(path, body, overrides, **{"x-vllm-priority": "9"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "second/alias"
    [request] = server.llm.requests
    assert (request.cache_salt, request.priority) == ("tenant é", -2)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
async def test_the_model_counts_where_nothing_is_generated(path: str) -> None:
    body = {"prompt": "Hi"} if path == "/tokenize" else {"messages": HI}
    alias = {**body, "model": "alias"}
    overrides = RequestOverrides(model="first", cache_salt="x", priority=1)
    server = Server()
    assert (await server.post(path, alias, overrides)).status_code == 200
    assert (await server.post(path, alias, RequestOverrides())).status_code == 404


@pytest.mark.parametrize("path", BODIES)
async def test_the_engine_gets_the_routers_tokens(path: str) -> None:
    server = Server()
    tokens = PromptTokens.of(server.tokenizer_id, [[1, 2, 3]])
    answer = await server.post(path, BODIES[path], RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == 200, answer.text
    assert server.llm.requests[0].prompt_token_ids == [1, 2, 3]


async def test_count_tokens_counts_the_routers_tokens() -> None:
    server = Server()
    tokens = PromptTokens.of(server.tokenizer_id, [[1, 2, 3]])
    body = {"model": "first", "messages": HI}
    overrides = RequestOverrides(prompt_tokens=tokens)
    answer = await server.post("/v1/messages/count_tokens", body, overrides)
    assert answer.json() == {"input_tokens": 3}


@pytest.mark.parametrize("path", BODIES)
async def test_tokens_of_another_tokenizer_are_passed_over(path: str) -> None:
    server, plain = Server(), Server()
    tokens = PromptTokens.of("0123", [[1, 2, 3]])
    answer = await server.post(path, BODIES[path], RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == 200
    await plain.post(path, BODIES[path], RequestOverrides())
    assert server.llm.requests[0].prompt_token_ids == plain.llm.requests[0].prompt_token_ids


@pytest.mark.parametrize("path", BODIES)
async def test_streams_that_go_on_take_them_too(path: str) -> None:
    server = Server()
    request = {**BODIES[path], "model": "alias", "stream": True}
    body = {"head": f"1-{0:032}", "trace": [[0, [65]]], "request": request}
    tokens = PromptTokens.of(server.tokenizer_id, [[1, 2, 3]])
    overrides = RequestOverrides("first", "tenant", 5, tokens)
    answer = await server.post(CONTINUE + path, body, overrides)
    assert answer.status_code == 200, answer.text
    [got] = server.llm.requests
    assert (got.prompt_token_ids, got.output_token_ids) == ([1, 2, 3], [65])
    assert (got.cache_salt, got.priority) == ("tenant", 5)


def routed(server: Server, path: str, body: dict[str, Any]) -> PromptTokens:
    """The prompts of `body` as a router tokenizes them."""
    tokenizer = server.llm.tokenizer
    parsed = KINDS[path].model_validate(body)
    if isinstance(parsed, CompletionRequest):
        special = parsed.add_special_tokens is not False
        texts = [prompt for prompt in parsed.prompts() if isinstance(prompt, str)]
        begun = [tokenizer.begin(text, add_special_tokens=special) for text in texts]
    else:
        chat = parsed if isinstance(parsed, ChatCompletionRequest) else parsed.to_chat()
        begun = [tokenizer.begin_chat(chat)]
    return PromptTokens(tokenizer.id, tuple(each.packed() for each in begun))


SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "echo": (TEXT, {"prompt": ["Hi there", "é"], "echo": True, "logprobs": 1}),
    "truncation": (TEXT, {"prompt": "a long prompt", "truncate_prompt_tokens": 4}),
    "truncation on the right": (
        CHAT,
        {"truncate_prompt_tokens": 4, "truncation_side": "right"},
    ),
    "without special tokens": (TEXT, {"add_special_tokens": False}),
    "the prompt's text": (CHAT, {"return_prompt_text": True}),
    "a message that goes on": (
        CHAT,
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "too long": (TEXT, {"prompt": "x" * 80}),
    "many too long": (TEXT, {"prompt": "x" * 5000}),
    "bad parameter": (TEXT, {"temperature": -1}),
    "chat with tools": (CHAT, {"tools": [TOOL], "messages": LONG}),
    "chat with a tool that must be called": (CHAT, {"tools": [TOOL], "tool_choice": "required"}),
    "messages": (MESSAGES, {"system": "Be brief.", "messages": LONG}),
    "messages with tools": (MESSAGES, {"tools": [{"name": "look", "input_schema": EMPTY}]}),
    "responses": (RESPONSES, {"instructions": "Be brief.", "input": LONG}),
    "responses with tools": (
        RESPONSES,
        {"tools": [{"type": "function", "name": "look", "parameters": EMPTY, "strict": False}]},
    ),
}


@pytest.mark.parametrize("case", SAME)
async def test_answers_are_those_without_the_routers_tokens(case: str) -> None:
    path, fields = SAME[case]
    body = {**BODIES[path], **fields}
    server, plain = Server(TOOLING), Server(TOOLING)
    for each in (server, plain):
        bundle = msgspec.structs.replace(each.llm.tokenizer.bundle, chat_template=TEMPLATE)
        each.llm.tokenizer = Tokenizer(bundle)
        each.llm.load(max_model_len=2000 if "x" not in body.get("prompt", "") else 64)
    expected = await plain.post(path, body, RequestOverrides())
    tokens = routed(server, path, body)
    answer = await server.post(path, body, RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == expected.status_code
    assert _timeless(answer.json()) == _timeless(expected.json())
    assert [each.prompt_token_ids for each in server.llm.requests] == [
        each.prompt_token_ids for each in plain.llm.requests
    ]


def _timeless(body: dict[str, Any]) -> str:
    """Without times and ids that are made up."""
    return re.sub(r"[0-9a-f]{24,}|\d{9,}", "0", json.dumps(body))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [2]], "of 2 prompts, the body has 1"),
        ([[99999]], "token ids must lie between 0 and 256"),
        ([[2**32 - 1]], "token ids must lie between 0 and 256"),
        ([[]], "prompt cannot be empty"),
        ([[1] * 64], "the prompt has 64 tokens"),
    ],
)
async def test_tokens_are_checked_as_a_clients_are(
    path: str, prompts: list[list[int]], message: str
) -> None:
    server = Server()
    tokens = PromptTokens.of(server.tokenizer_id, prompts)
    answer = await server.post(path, BODIES[path], RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "header", [{TOKENS_HEADER: "zz"}, {TOKENS_HEADER: "ab/9"}, {"x-octavo-set-priority": "x"}]
)
async def test_headers_that_no_router_writes_are_refused(header: dict[str, str]) -> None:
    answer = await Server().post(TEXT, BODIES[TEXT], RequestOverrides(), **header)
    assert answer.status_code == 400
    assert next(iter(header)) in answer.json()["error"]["message"]


async def test_a_priority_of_more_than_64_bits_is_refused() -> None:
    overrides = RequestOverrides(priority=2**63)
    assert (await Server().post(TEXT, BODIES[TEXT], overrides)).status_code == 400


async def test_the_header_of_tokens_makes_no_room_for_a_larger_body() -> None:
    body = b'{"prompt": "Hi"}' + b" " * MAX_BODY_BYTES
    tokens = PromptTokens.of("ab", [[]])
    answer = await Server().post(TEXT, body, RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == 413


async def test_a_largest_body_may_have_its_tokens_with_it() -> None:
    body = b'{"prompt": "Hi", "max_tokens": 1}'
    body += b" " * (MAX_BODY_BYTES - len(body))
    server = Server()
    tokens = PromptTokens.of("ab", [[2**31] * MAX_BODY_BYTES])
    assert tokens.fits(body)
    answer = await server.post(TEXT, body, RequestOverrides(prompt_tokens=tokens))
    assert answer.status_code == 200, answer.text


def test_the_id_of_a_tokenizer_is_its_bundles() -> None:
    tokenizer = FakeLLM().tokenizer
    assert tokenizer.id == tokenizer.bundle.id
