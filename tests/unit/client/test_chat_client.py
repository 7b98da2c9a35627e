"""Streaming chat: text, usage, and what an error looks like."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fakes.fake_pooling import CLASSIFIER, EMBEDDER
from tests.unit.server.conftest import running_replica

from octavo.chat_client import Answer, ChatClient, Usage
from octavo.local.greet import (
    QUESTION,
    ask_first_question,
    pooling_lines,
    pooling_route,
    ready_lines,
)
from octavo_protocol.errors import ClientError, ConfigError, ServerError, UnavailableError
from octavo_runtime.engine.messages import PoolingInfo

Handler = Callable[[httpx.Request], httpx.Response]


def sse(*events: Any) -> httpx.Response:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}" for event in events]
    return httpx.Response(200, text=": ping\n\n" + "\n\n".join(lines) + "\n\n")


def delta(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish_reason}]}


def client(handler: Handler) -> ChatClient:
    return ChatClient("http://server", transport=httpx.MockTransport(handler))


def test_pieces_arrive_and_the_answer_is_filled() -> None:
    sent: list[dict[str, Any]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        role = {"choices": [{"delta": {"role": "assistant"}}]}
        return sse(
            role, delta("Hel"), delta("lo", "stop"), {"choices": [], "usage": usage}, "[DONE]"
        )

    answer = Answer()
    messages = [{"role": "user", "content": "hi"}]
    pieces = list(client(handler).stream("m", messages, answer, max_tokens=5, temperature=None))

    assert pieces == ["Hel", "lo"]
    assert answer == Answer("Hello", "stop", Usage(9, 4, 2))
    assert sent[0] == {
        "model": "m",
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }


def test_error_inside_the_stream_is_raised() -> None:
    stream = client(lambda _: sse(delta("x"), {"error": {"message": "engine died"}})).stream(
        "m", [], Answer()
    )
    with pytest.raises(ServerError, match="engine died"):
        list(stream)


def test_refusal_carries_what_the_server_said() -> None:
    body = {"error": {"message": "no model 'x'"}}
    with pytest.raises(ClientError, match="answered 404: no model 'x'"):
        list(client(lambda _: httpx.Response(404, json=body)).stream("x", [], Answer()))


def test_answer_that_is_no_json_is_shown() -> None:
    with pytest.raises(ServerError, match="answered 502: bad gateway"):
        client(lambda _: httpx.Response(502, text="bad gateway")).models()


def test_nobody_there_says_how_to_start() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(UnavailableError, match=r"nothing answers at http://server.*octavo up"):
        client(refuse).models()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host"])
def test_what_is_no_address_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match="no address; write for example http://"):
        ChatClient(url)


@pytest.mark.parametrize("key", ["ke\ny", "schl\u00fcssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ChatClient("http://x", api_key=key)
    assert key not in str(raised.value)


def test_models_are_listed() -> None:
    body = {"data": [{"id": "a"}, {"id": "b"}]}
    assert client(lambda _: httpx.Response(200, json=body)).models() == ["a", "b"]


def test_failed_greeting_says_why_and_is_no_error() -> None:
    written: list[str] = []
    assert ask_first_question("http://127.0.0.1:1", "m", written.append) is False
    assert QUESTION in written[0]
    assert "nothing answers" in written[-1]


def test_ready_lines_name_the_environments_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to the same binary elsewhere on PATH is another environment."""
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "in python:" not in ready_lines("http://127.0.0.1:8000", "m", "smollm2")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert "in python:" in ready_lines("http://127.0.0.1:8000", "m", "smollm2")


def test_ready_lines_name_url_and_model() -> None:
    text = ready_lines("http://127.0.0.1:8001", "m", "smollm2")

    assert "curl http://127.0.0.1:8001/v1/chat/completions" in text
    assert 'base_url="http://127.0.0.1:8001/v1"' in text
    assert 'LLM("smollm2")' in text
    assert "--url http://127.0.0.1:8001" in text
    assert "--url" not in ready_lines("http://127.0.0.1:8000", "m", "smollm2")


@pytest.mark.parametrize(
    ("pooling", "route"), [(EMBEDDER, "/v1/embeddings"), (CLASSIFIER, "/classify"), (None, None)]
)
async def test_the_route_of_a_model_is_found_out(
    pooling: PoolingInfo | None, route: str | None
) -> None:
    async with running_replica(pooling=pooling) as replica:
        assert await asyncio.to_thread(pooling_route, replica.url, "first") == route


def test_nobody_there_has_no_route() -> None:
    assert pooling_route("http://127.0.0.1:1", "m") is None


def test_lines_of_a_model_that_pools_name_its_route_and_method() -> None:
    text = pooling_lines("http://127.0.0.1:8001", "m", "minilm", "/v1/embeddings")

    assert "curl http://127.0.0.1:8001/v1/embeddings" in text
    assert 'LLM("minilm").embed(["Hello!"])[0].outputs.embedding[:4]' in text
