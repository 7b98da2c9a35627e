"""`octavo chat` and `octavo complete`: what is sent, what is shown, how a conversation goes."""

import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from octavo.chat_client import ChatClient
from octavo.cli.main import main


class Server:
    """Answers every request with the same three chunks; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.keys: list[str | None] = []
        self.urls: list[str] = []
        self.failures = 0
        self.breaks = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.keys.append(request.headers.get("authorization"))
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}]})
        body = json.loads(request.content)
        self.sent.append((request.url.path, body))
        if self.failures:
            self.failures -= 1
            return httpx.Response(400, json={"error": {"message": "too long"}})
        is_chat = request.url.path.endswith("chat/completions")
        choices = [{"delta": {"content": t}} if is_chat else {"text": t} for t in ("Hel", "lo")]
        usage = {"prompt_tokens": 9, "completion_tokens": 2}
        events: list[Any] = [{"choices": [each]} for each in choices]
        if self.breaks:
            events.append({"error": {"message": "the engine is gone"}})
        events.append({"choices": [], "usage": usage})
        return httpx.Response(200, text="".join(f"data: {json.dumps(e)}\n\n" for e in events))

    def connect(self, url: str, api_key: str | None) -> ChatClient:
        self.urls.append(url)
        return ChatClient("http://x", api_key=api_key, transport=httpx.MockTransport(self))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr("octavo.cli.chat.connect", server.connect)
    monkeypatch.setattr("octavo.cli.complete.connect", server.connect)
    return server


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    return int(ending.value.code or 0)


def type_lines(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    typed: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_chat_asks_one_question_with_vllms_flags(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--system-prompt Short. --model-name m --api-key k --stats --max_tokens 5"
    assert run("chat", "-q", "Hi?", *flags.split(), "--url", "http://y/v1") == 0
    path, body = server.sent[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "m"
    assert body["max_tokens"] == 5
    assert body["messages"] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "Hi?"},
    ]
    assert (server.keys, server.urls) == (["Bearer k"], ["http://y/v1"])
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "Hello"
    assert output[1].startswith("9 prompt tokens (0 cached), 2 written; first after ")


def test_complete_continues_one_text_and_leaves_defaults_to_the_server(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("complete", "-q", "Once") == 0
    assert server.sent == [
        (
            "/v1/completions",
            {
                "model": "first",
                "prompt": "Once",
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
    ]
    assert capsys.readouterr().out == "Hello\n"


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_a_dash_reads_standard_input(
    server: Server, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert run(command, "-") == 0
    body = server.sent[0][1]
    assert body.get("prompt", body.get("messages", [{}])[-1].get("content")) == "from a pipe"


def test_a_conversation_remembers_until_it_starts_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_lines(monkeypatch, "one", "", "two", "/new", "three", "/exit", "four")
    assert run("chat") == 0
    sent = [[each["content"] for each in body["messages"]] for _, body in server.sent]
    assert sent == [["one"], ["one", "Hello", "two"], ["three"]]


def test_an_error_ends_no_conversation_and_is_forgotten(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures = 1
    type_lines(monkeypatch, "one", "two")
    assert run("chat") == 0
    assert [each["content"] for each in server.sent[1][1]["messages"]] == ["two"]
    assert capsys.readouterr().err == "octavo: the server answered 400: too long\n"


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize("variable", ["OCTAVO_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY"])
def test_the_key_may_come_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, command: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "k")
    assert run(command, "-q", "Hi", "--model", "m") == 0
    assert server.keys == ["Bearer k"]


def test_an_answer_that_breaks_off_ends_its_line_before_the_error(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.breaks = True
    assert run("complete", "-q", "Hi", "--model", "m") == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("Hello\n", "octavo: the engine is gone\n")


def test_complete_continues_line_by_line_without_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_lines(monkeypatch, "one", "/help", "two")
    assert run("complete") == 0
    assert [body["prompt"] for _, body in server.sent] == ["one", "two"]
    assert capsys.readouterr().out.count("each line is continued on its own") == 2
