"""Whatever comes in: a status, the OpenAI envelope, a message that helps, and a live server."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.fakes.fake_engine_core import REFUSED
from tests.fakes.tiny_model import VOCAB_SIZE, tiny_tokenizer
from tests.integration.replica.harness import MAX_BODY_BYTES, MAX_MODEL_LEN, MODEL, Replica

pytestmark = [pytest.mark.integration]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
HUGE = 10**30


@pytest.fixture(autouse=True)
def still_serving(replica: Replica) -> Iterator[None]:
    yield
    assert replica.http.get("/health").status_code == 200
    answer = replica.http.post(COMPLETIONS, json={"prompt": "hi", "max_tokens": 1})
    assert answer.status_code == 200
    assert replica.metric("requests_running") == 0


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


def post(replica: Replica, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    return error_of(replica.http.post(path, json=body), status)


# name, value, part of the message; for both routes
OUT_OF_RANGE: list[tuple[str, Any, str]] = [
    ("n", 0, "n must be between 1 and"),
    ("n", -1, "n must be between 1 and"),
    ("n", HUGE, "n must be between 1 and"),
    ("temperature", -0.1, "temperature must be in [0, 2]"),
    ("temperature", 2.1, "temperature must be in [0, 2]"),
    ("temperature", 1e300, "temperature must be in [0, 2]"),
    ("top_p", 0, "top_p must be in (0, 1]"),
    ("top_p", -1, "top_p must be in (0, 1]"),
    ("top_p", 1.1, "top_p must be in (0, 1]"),
    ("top_k", -2, "top_k must be at least -1"),
    ("top_k", HUGE, "top_k must be between -1 and"),
    ("min_p", -0.1, "min_p must be in [0, 1]"),
    ("min_p", 1.1, "min_p must be in [0, 1]"),
    ("presence_penalty", -2.1, "presence_penalty must be in [-2, 2]"),
    ("presence_penalty", 2.1, "presence_penalty must be in [-2, 2]"),
    ("frequency_penalty", -2.1, "frequency_penalty must be in [-2, 2]"),
    ("frequency_penalty", 2.1, "frequency_penalty must be in [-2, 2]"),
    ("repetition_penalty", 0, "repetition_penalty must be in (0"),
    ("repetition_penalty", -1, "repetition_penalty must be in (0"),
    ("seed", HUGE, "seed must be between"),
    ("seed", -HUGE, "seed must be between"),
    ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
    ("max_tokens", -1, "max_tokens must be at least 1, got -1"),
    ("max_tokens", HUGE, "max_tokens must be between 1 and"),
    ("min_tokens", -1, "min_tokens must be at least 0"),
    ("min_tokens", HUGE, "min_tokens must be between 0 and"),
    ("stop_token_ids", [-1], "stop_token_ids must be at least 0"),
    ("stop_token_ids", [VOCAB_SIZE], "outside the vocabulary"),
    ("stop_token_ids", [HUGE], "stop_token_ids must be between 0 and"),
    ("priority", HUGE, "priority: "),
    ("priority", -HUGE, "priority: "),
]
WRONG_TYPES: list[tuple[str, Any]] = [
    (name, value)
    for name in (
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "max_tokens",
        "min_tokens",
        "priority",
    )
    for value in ("many", [1], {"a": 1})
] + [
    ("n", 1.5),
    ("max_tokens", 2.5),
    ("model", 3),
    ("stream", "maybe"),
    ("stop", 3),
    ("stop", [3]),
    ("stop_token_ids", "a"),
    ("stop_token_ids", 5),
    ("ignore_eos", "perhaps"),
    ("cache_salt", 5),
    ("stream_options", "all"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "value", "message"), OUT_OF_RANGE)
def test_number_out_of_range(
    replica: Replica, name: str, value: Any, message: str, stream: bool
) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "hi"})):
        error = post(replica, path, body | {name: value, "stream": stream})
        assert message in error["message"]
        assert error["param"] == name
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_wrong_type(replica: Replica, name: str, value: Any) -> None:
    for path, body in ((CHAT, {"messages": MESSAGES}), (COMPLETIONS, {"prompt": "hi"})):
        error = post(replica, path, body | {name: value})
        assert error["message"].startswith(name)
        assert error["param"].split(".")[0] == name


@pytest.mark.parametrize(
    ("path", "body", "message", "parameter"),
    [
        (COMPLETIONS, {}, "prompt: Field required", "prompt"),
        (COMPLETIONS, {"prompt": None}, "prompt: Field required", "prompt"),
        (COMPLETIONS, {"prompt": ""}, "prompt cannot be empty", "prompt"),
        (COMPLETIONS, {"prompt": []}, "prompt cannot be empty", "prompt"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt cannot be empty", "prompt"),
        (COMPLETIONS, {"prompt": ["hi", ""]}, "prompt cannot be empty", "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 1025}, "at most 1024 prompts", "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 1024, "n": 17}, "got 1024 prompts x n=17", "n"),
        (COMPLETIONS, {"prompt": [VOCAB_SIZE]}, f"between 0 and {VOCAB_SIZE - 1}", "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, f"between 0 and {VOCAB_SIZE - 1}", "prompt"),
        (COMPLETIONS, {"prompt": [[1], [HUGE]]}, f"between 0 and {VOCAB_SIZE - 1}", "prompt"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix is not supported", None),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "at most 20 are given", "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -1}, "at most 20 are given", "logprobs"),
        (COMPLETIONS, {"prompt": "a", "logprobs": -2}, "at least -1", None),
        (COMPLETIONS, {"prompt": "a", "prompt_logprobs": 21}, "at most 20", "prompt_logprobs"),
        (CHAT, {}, "messages: Field required", "messages"),
        (CHAT, {"messages": []}, "messages: ", "messages"),
        (CHAT, {"messages": "hi"}, "messages: ", "messages"),
        (CHAT, {"messages": [{"role": "", "content": "x"}]}, "messages.0.role: ", None),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role: Field required", None),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages.0.content", None),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs needs logprobs", None),
        (
            CHAT,
            {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21},
            "at most 20 are given",
            "logprobs",
        ),
        (
            CHAT,
            {"messages": MESSAGES, "logprobs": True, "top_logprobs": -1},
            "at most 20 are given",
            "logprobs",
        ),
        (
            CHAT,
            {"messages": MESSAGES, "max_completion_tokens": 0},
            "max_completion_tokens must be at least 1",
            "max_completion_tokens",
        ),
        (
            CHAT,
            {"messages": MESSAGES, "continue_final_message": True},
            "continue_final_message=true needs add_generation_prompt=false",
            None,
        ),
        (
            CHAT,
            {"messages": MESSAGES, "chat_template_kwargs": {"messages": []}},
            "chat_template_kwargs may not set 'messages'",
            "chat_template_kwargs",
        ),
        (
            CHAT,
            {"messages": MESSAGES, "chat_template_kwargs": {"self": 1}},
            "chat_template_kwargs may not set 'self'",
            "chat_template_kwargs",
        ),
        ("/tokenize", {"messages": []}, "messages: ", "messages"),
        (COMPLETIONS, {"prompt": "a", "n": 2, "temperature": 0}, "n must be 1 with", "n"),
        (COMPLETIONS, {"prompt": "a", "stop": [""]}, "stop must be a non-empty", "stop"),
        (COMPLETIONS, {"prompt": "a", "stop": list("abcde")}, "at most 4 strings", None),
        (COMPLETIONS, {"prompt": "a", "min_tokens": 9, "max_tokens": 8}, "at most", "min_tokens"),
        (COMPLETIONS, {"prompt": "a", "stream_options": {}}, "only allowed with stream", None),
        (COMPLETIONS, {"prompt": "a", "tools": [{}]}, "unknown field 'tools'", None),
        (
            COMPLETIONS,
            {"prompt": "a", "max_token": 5},
            "'max_token'; did you mean max_tokens?",
            None,
        ),
        (COMPLETIONS, {"prompt": "a", "qqq": 5}, "unknown field 'qqq'", None),
        (COMPLETIONS, [], "the body must be a JSON object", None),
        (COMPLETIONS, "text", "the body must be a JSON object", None),
        (COMPLETIONS, 5, "the body must be a JSON object", None),
        ("/tokenize", {}, "give either prompt or messages", None),
        (
            "/tokenize",
            {"prompt": "a", "messages": MESSAGES},
            "give either prompt or messages",
            None,
        ),
        ("/tokenize", {"prompt": 3}, "prompt: ", "prompt"),
        ("/detokenize", {}, "tokens: Field required", "tokens"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, f"between 0 and {VOCAB_SIZE - 1}", "tokens"),
        ("/detokenize", {"tokens": [-1]}, f"between 0 and {VOCAB_SIZE - 1}", "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0: ", "tokens.0"),
    ],
)
def test_bad_request(
    replica: Replica, path: str, body: Any, message: str, parameter: str | None
) -> None:
    error = post(replica, path, body)

    assert message in error["message"]
    if parameter is not None:
        assert error["param"] == parameter


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize", "/detokenize"])
def test_unknown_model(replica: Replica, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"messages": MESSAGES},
        COMPLETIONS: {"prompt": "hi"},
        "/tokenize": {"prompt": "hi"},
        "/detokenize": {"tokens": [1]},
    }

    error = post(replica, path, bodies[path] | {"model": "other"}, 404)

    assert error["message"] == (
        f"the model 'other' does not exist; this server has '{MODEL}', 'tiny-alias'"
    )
    assert (error["type"], error["param"], error["code"]) == (
        "not_found_error",
        "model",
        "model_not_found",
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [MAX_MODEL_LEN, MAX_MODEL_LEN + 1, 50_000])
def test_prompt_too_long(replica: Replica, length: int, stream: bool) -> None:
    error = post(replica, COMPLETIONS, {"prompt": [70] * length, "stream": stream})

    assert f"the prompt has {length} tokens" in error["message"]
    assert f"shorten the prompt to {MAX_MODEL_LEN - 1}" in error["message"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")


def test_one_prompt_too_long_among_many_fails_the_request(replica: Replica) -> None:
    prompts = [[70] * 10, [70] * MAX_MODEL_LEN, [71] * 10]

    error = post(replica, COMPLETIONS, {"prompt": prompts, "max_tokens": 100})

    assert error["code"] == "context_length_exceeded"


def test_chat_too_long(replica: Replica) -> None:
    text = "the dog " * 100_000
    assert len(text) < MAX_BODY_BYTES
    error = post(replica, CHAT, {"messages": [{"role": "user", "content": text}]})

    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"prompt": "hi"', b"{'prompt': 'hi'}", b'{"prompt": NaN}', b"\x00", b"{}}"],
)
def test_broken_json(replica: Replica, raw: bytes) -> None:
    error = error_of(replica.http.post(COMPLETIONS, content=raw), 400)

    assert error["message"].startswith("the body is not valid JSON: ")


@pytest.mark.parametrize("raw", [b'{"prompt": "\xff\xfe"}', b'{"prompt": "\xed\xa0\x80"}', b"\xff"])
def test_invalid_utf8(replica: Replica, raw: bytes) -> None:
    error = error_of(replica.http.post(COMPLETIONS, content=raw), 400)

    assert "the body is not valid" in error["message"]


@pytest.mark.parametrize("text", ["\\ud800", "a\\udc00b", "\\ud83d\\u0041"])
def test_lone_surrogates(replica: Replica, text: str) -> None:
    for path, body in (
        (COMPLETIONS, f'{{"prompt": "{text}"}}'),
        (CHAT, f'{{"messages": [{{"role": "user", "content": "{text}"}}]}}'),
        (COMPLETIONS, f'{{"prompt": "a", "cache_salt": "{text}"}}'),
        (COMPLETIONS, f'{{"prompt": "a", "stop": "{text}"}}'),
        (COMPLETIONS, f'{{"prompt": "a", "{text}": 1}}'),
    ):
        error_of(replica.http.post(path, content=body), 400)


def test_deeply_nested_json(replica: Replica) -> None:
    error_of(replica.http.post(COMPLETIONS, content=b"[" * 100_000), 400)
    nested = b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    error_of(replica.http.post(COMPLETIONS, content=nested), 400)


def test_body_of_fifty_megabytes(replica: Replica) -> None:
    body = b'{"prompt": "' + b"a" * 50_000_000 + b'"}'
    with httpx.Client(base_url=replica.url, timeout=120) as client:
        error = error_of(client.post(COMPLETIONS, content=body), 413)

    assert error["message"] == f"the body is larger than {MAX_BODY_BYTES} bytes"


def test_chunked_body_of_fifty_megabytes(replica: Replica) -> None:
    """No content-length: the limit holds for what really comes."""

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"a" * 1_000_000

    with httpx.Client(base_url=replica.url, timeout=120) as client:
        error = error_of(client.post(COMPLETIONS, content=chunks()), 413)

    assert error["message"] == f"the body is larger than {MAX_BODY_BYTES} bytes"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/nope", "/v2/models"])
def test_unknown_route(replica: Replica, path: str) -> None:
    for answer in (replica.http.get(path), replica.http.post(path, json={})):
        assert error_of(answer, 404)["message"] == f"there is no route {path}"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("PUT", COMPLETIONS), ("DELETE", "/v1/models"), ("POST", "/health")],
)
def test_wrong_method(replica: Replica, method: str, path: str) -> None:
    error = error_of(replica.http.request(method, path), 405)

    assert error["message"] == f"{method} is not allowed on {path}"


def test_content_type_may_be_missing_but_not_be_another_than_json(replica: Replica) -> None:
    body = json.dumps({"prompt": "hi"})
    answer = replica.http.post(COMPLETIONS, content=body)
    other = replica.http.post(COMPLETIONS, content=body, headers={"content-type": "text/plain"})

    assert other.status_code == 400
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"not http at all\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 100 + b"broken\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(replica: Replica, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", replica.port), timeout=10) as client:
        client.sendall(raw)
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


def test_two_requests_with_one_request_id(replica: Replica) -> None:
    """A router that retries sends the id of the first attempt again."""
    body = {"prompt": "the dog", "max_tokens": 100, "stream": True}
    headers = {"x-request-id": "the-same"}
    with (
        replica.http.stream("POST", COMPLETIONS, json=body, headers=headers) as first,
        replica.http.stream("POST", COMPLETIONS, json=body, headers=headers) as second,
    ):
        assert [answer.read().count(b"data: ") > 1 for answer in (first, second)] == [True, True]
        assert b"error" not in first.content + second.content


def test_null_means_not_given(replica: Replica) -> None:
    body = {"prompt": "the dog", "n": None, "stream": None, "temperature": None, "stop": None}

    answer = replica.http.post(COMPLETIONS, json=body).json()

    assert answer["usage"]["prompt_tokens"] == len(tiny_tokenizer().encode("the dog"))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["the dog", ["the dog", "the fox"]])
def test_what_the_engine_refuses_is_the_server_s_error(
    replica: Replica, prompt: Any, stream: bool, n: int
) -> None:
    body = {"prompt": prompt, "cache_salt": REFUSED, "stream": stream, "n": n}

    error = error_of(replica.http.post(COMPLETIONS, json=body), 500)

    assert error["message"] == "the engine refused the request"
    assert error["type"] == "internal_error"
