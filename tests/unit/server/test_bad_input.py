"""Whatever a client sends: the right status, a message that helps, and a server that goes on."""

import json
from typing import Any

import httpx
import pytest
from tests.unit.server.conftest import MAX_BODY_BYTES, Replica

from octavo_protocol.tokenizer import Tokenizer

_CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
_TEXT = {"prompt": "Hi", "max_tokens": 2}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


async def _refused(
    direct: httpx.AsyncClient,
    path: str,
    body: bytes,
    *,
    status: int,
    says: str,
    parameter: str | None,
) -> None:
    answer = await direct.post(path, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status), error
    assert says in error["message"]
    assert error["param"] == parameter
    assert answer.headers["content-type"] == "application/json"
    healthy = await direct.post("/v1/completions", json=_TEXT)
    assert healthy.json()["choices"][0]["text"] == "Hi"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, "must be in [0, 2]"),
        ("temperature", 2.1, "must be in [0, 2]"),
        ("temperature", "hot", "valid number"),
        ("top_p", 0, "must be in (0, 1]"),
        ("top_p", -1, "must be in (0, 1]"),
        ("top_p", 1.5, "must be in (0, 1]"),
        ("top_k", -2, "at least -1"),
        ("top_k", 0.5, "valid integer"),
        ("min_p", -0.1, "must be in [0, 1]"),
        ("min_p", 1.1, "must be in [0, 1]"),
        ("presence_penalty", -2.1, "must be in [-2, 2]"),
        ("presence_penalty", 2.1, "must be in [-2, 2]"),
        ("frequency_penalty", -2.1, "must be in [-2, 2]"),
        ("frequency_penalty", 2.1, "must be in [-2, 2]"),
        ("repetition_penalty", 0, "must be in (0, inf]"),
        ("repetition_penalty", -1, "must be in (0, inf]"),
        ("seed", 2**63, "seed"),
        ("seed", 1.5, "valid integer"),
        ("n", 0, "between 1 and"),
        ("n", -1, "between 1 and"),
        ("n", 10**6, "between 1 and"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", -5, "at least 1"),
        ("min_tokens", -1, "at least 0"),
        ("min_tokens", 3, "at most max_tokens"),
        ("stop_token_ids", [-1], "at least 0"),
        ("stop", "", "non-empty"),
        ("priority", "first", "valid integer"),
    ],
)
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
async def test_a_value_out_of_range_is_named_with_its_range(
    direct: httpx.AsyncClient, route: str, field: str, value: Any, says: str
) -> None:
    body = (_CHAT if route == "chat/completions" else _TEXT) | {field: value}
    raw = json.dumps(body).encode()
    await _refused(direct, f"/v1/{route}", raw, status=400, says=says, parameter=field)


@pytest.mark.parametrize("field", ["top_k", "priority", "seed", "max_tokens", "n", "min_tokens"])
@pytest.mark.parametrize("value", [2**63, 2**64, 2**70, -(2**63) - 1, -(2**70)])
async def test_integers_of_any_size_never_break_the_server(
    direct: httpx.AsyncClient, field: str, value: int
) -> None:
    answer = await direct.post("/v1/completions", json=_TEXT | {field: value})

    assert answer.status_code in (200, 400)
    assert (await direct.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("body", "says", "parameter"),
    [
        ({}, "Field required", "prompt"),
        ({"prompt": ""}, "cannot be empty", "prompt"),
        ({"prompt": []}, "cannot be empty", "prompt"),
        ({"prompt": [""]}, "cannot be empty", "prompt"),
        ({"prompt": ["a", ""]}, "cannot be empty", "prompt"),
        ({"prompt": [[]]}, "cannot be empty", "prompt"),
        ({"prompt": [-1]}, "between 0 and 256", "prompt"),
        ({"prompt": [257]}, "between 0 and 256", "prompt"),
        ({"prompt": [2**70]}, "between 0 and 256", "prompt"),
        ({"prompt": ["a"] * 1025}, "at most 1024 prompts", "prompt"),
        ({"prompt": "a" * 64}, "has 64 tokens; this model's context is 64", "prompt"),
        ({"prompt": "a", "promt": 1}, "unknown field 'promt'; did you mean prompt?", "promt"),
        ({"prompt": "a", "logprobs": 99}, "at most 20 are given", "logprobs"),
        ({"prompt": "a", "logprobs": -1}, "asks for 257 log-prob", "logprobs"),
        ({"prompt": "a", "logprobs": -2}, "at least -1", "logprobs"),
        ({"prompt": "a", "prompt_logprobs": 99}, "at most 20 are given", "prompt_logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "at least 1", "max_tokens"),
        ({"prompt": "a", "suffix": "b"}, "suffix is not supported", "suffix"),
        ({"prompt": "a", "truncate_prompt_tokens": 0}, "cannot be empty", "prompt"),
        (
            {"prompt": "a", "use_beam_search": True, "stream": True},
            "not allowed",
            "use_beam_search",
        ),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "not allowed", "prompt_logprobs"),
        ({"prompt": "a", "chat_template": "x"}, "unknown field 'chat_template'", "chat_template"),
        ({"prompt": "a", "stream_options": {}}, "only allowed with stream", "stream_options"),
        ({"prompt": "a", "stop": ["a"] * 5}, "at most 4 strings", "stop"),
        (
            {"prompt": "a", "stream": True, "stream_options": {"usage": True}},
            "stream_options: unknown field 'usage'",
            "stream_options.usage",
        ),
        (
            {"prompt": "a", "n": 16384, "allowed_token_ids": [7] * 257, "temperature": 1}
            | {"stop_token_ids": [7] * 257},
            "taken once for every sample, are 8437760; at most 8388608 are taken",
            "n",
        ),
        ({"prompt": "a", "best_of": 3}, "best_of is not supported", "best_of"),
    ],
)
async def test_a_completion_that_makes_no_sense(
    direct: httpx.AsyncClient, body: dict[str, Any], says: str, parameter: str | None
) -> None:
    raw = json.dumps(body).encode()
    if body.get("prompt") == "a" * 64:
        answer = await direct.post("/v1/completions", content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert says in answer.json()["error"]["message"]
        return
    await _refused(direct, "/v1/completions", raw, status=400, says=says, parameter=parameter)


@pytest.mark.parametrize(
    ("body", "says", "parameter"),
    [
        ({}, "Field required", "messages"),
        ({"messages": []}, "at least 1 item", "messages"),
        ({"messages": [{"role": "", "content": "Hi"}]}, "messages.0.role", "messages.0.role"),
        ({"messages": "Hi"}, "valid list", "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content", None),
        (_CHAT | {"top_logprobs": 2}, "needs logprobs=true", "top_logprobs"),
        (_CHAT | {"logprobs": True, "top_logprobs": 21}, "at most 20 are given", "logprobs"),
        (_CHAT | {"max_completion_tokens": 0}, "at least 1", "max_completion_tokens"),
        (_CHAT | {"tools": [{"type": "function"}]}, "Field required", "tools.0.function"),
        (_CHAT | {"tools": []}, "tools must not be empty", "tools"),
        (_CHAT | {"tools": [_TOOL]}, "--enable-auto-tool-choice", "tool_choice"),
        (_CHAT | {"tool_choice": "required"}, "needs tools", "tool_choice"),
        (
            _CHAT | {"tools": [_TOOL], "tool_choice": _named("other")},
            "not among the tools",
            "tool_choice",
        ),
        (
            _CHAT
            | {"tools": [_TOOL], "tool_choice": "required"}
            | {"response_format": {"type": "json_object"}},
            "leave out response_format",
            "tool_choice",
        ),
        (
            _CHAT
            | {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "give only one",
            "structured_outputs",
        ),
        (_CHAT | {"chat_template": "x"}, "--trust-request-chat-template", "chat_template"),
        (
            _CHAT | {"chat_template_kwargs": {"chat_template": "x"}},
            "--trust-request-chat-template",
            "chat_template",
        ),
        (_CHAT | {"n": 2, "temperature": 0}, "n must be 1 with temperature 0", "n"),
    ],
)
async def test_a_chat_that_makes_no_sense(
    direct: httpx.AsyncClient, body: dict[str, Any], says: str, parameter: str | None
) -> None:
    raw = json.dumps(body).encode()
    answer = await direct.post("/v1/chat/completions", content=raw)

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert says in error["message"]
    if parameter is not None:
        assert error["param"] == parameter


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"prompt": NaN}', "not valid JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"prompt": "\xff"}', "not valid UTF-8"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"a":' * 10_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
)
async def test_a_body_that_cannot_be_read(
    direct: httpx.AsyncClient, path: str, raw: bytes, says: str
) -> None:
    answer = await direct.post(path, content=raw)

    assert answer.status_code == 400
    if path.startswith("/v1") or raw not in (b"[]", b"null"):
        assert says in answer.json()["error"]["message"]
    assert (await direct.get("/health")).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(
    replica: Replica, is_chunked: bool
) -> None:
    async def chunks() -> Any:
        for _ in range(50):
            yield b" " * (MAX_BODY_BYTES // 10)

    content = chunks() if is_chunked else b" " * (MAX_BODY_BYTES + 1)
    answer = await replica.http.post("/v1/completions", content=content)

    assert answer.status_code == 413
    assert f"larger than {MAX_BODY_BYTES} bytes" in answer.json()["error"]["message"]
    assert (await replica.http.post("/v1/completions", json=_TEXT)).status_code == 200


async def test_unknown_routes_and_methods_answer_in_the_same_shape(
    direct: httpx.AsyncClient,
) -> None:
    missing = await direct.post("/v1/nothing", json={})
    wrong = await direct.get("/v1/completions")

    assert missing.status_code == 404
    assert missing.json()["error"] == {
        "message": "there is no route /v1/nothing",
        "type": "invalid_request_error",
        "param": None,
        "code": 404,
    }
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["message"] == "GET is not allowed on /v1/completions"


async def test_an_unexpected_error_tells_nothing_of_the_inside(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(replica.llm, "generate", broken)
    answer = await replica.http.post("/v1/completions", json=_TEXT)

    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 400}),
        ("/v1/completions", {"prompt": ["a", "a" * 400]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 400}]}),
    ],
)
async def test_a_prompt_that_no_tokens_could_make_fit_is_not_tokenized(
    direct: httpx.AsyncClient, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    answer = await direct.post(path, json=body)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "context of 64 tokens holds at most 320" in error["message"]


async def test_a_prompt_of_any_length_can_be_truncated(direct: httpx.AsyncClient) -> None:
    answer = await direct.post(
        "/v1/completions", json=_TEXT | {"prompt": "a" * 400 + "b", "truncate_prompt_tokens": 2}
    )

    assert answer.json()["choices"][0]["text"] == "ab"
