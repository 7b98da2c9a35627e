"""Streaming chat and completion over HTTP with any OpenAI-compatible server.

For `octavo chat`, `octavo complete` and the greeting of `octavo up`; it needs nothing beyond httpx.
Programs use the official `openai` client.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from octavo_protocol.errors import (
    ClientError,
    ConfigError,
    OctavoError,
    ServerError,
    UnavailableError,
)

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Answer:
    """What is known of an answer once its stream has ended."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)


class ChatClient:
    """Chats with the server at `base_url` (without /v1)."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Raises `ConfigError` for what is no address or cannot be a key."""
        self._http = make_http_client(
            base_url, api_key=api_key, timeout_s=timeout_s, transport=transport
        )
        self._base_url = base_url

    def close(self) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Names of the served models. Raises `OctavoError`."""
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise unreachable(self._base_url, error) from error
        if response.status_code != httpx.codes.OK:
            raise said_error(response)
        return [model["id"] for model in response.json()["data"]]

    def stream(
        self, model: str, messages: Sequence[Message], answer: Answer, **parameters: Any
    ) -> Iterator[str]:
        """The pieces of the answer's text as they arrive; `answer` is filled along the way.

        Raises `OctavoError` with what the server said, or that nothing answers.
        """
        body = {"model": model, "messages": list(messages), **parameters}
        return self._pieces("/v1/chat/completions", body, answer)

    def complete(self, model: str, prompt: str, answer: Answer, **parameters: Any) -> Iterator[str]:
        """As `stream`, for the continuation of `prompt`."""
        body = {"model": model, "prompt": prompt, **parameters}
        return self._pieces("/v1/completions", body, answer)

    def _pieces(self, path: str, given: Mapping[str, Any], answer: Answer) -> Iterator[str]:
        body = {name: value for name, value in given.items() if value is not None}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise said_error(response)
                for chunk in _events(response.iter_lines()):
                    piece = _take(chunk, answer)
                    if piece:
                        answer.text += piece
                        yield piece
        except httpx.HTTPError as error:
            raise unreachable(self._base_url, error) from error


def make_http_client(
    base_url: str, *, api_key: str | None, timeout_s: float, transport: httpx.BaseTransport | None
) -> httpx.Client:
    """A client for the server at `base_url`. Raises `ConfigError` for what is no address or cannot
    be a key.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{base_url!r} is no address; write for example http://127.0.0.1:8000")
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigError("the API key holds characters that no key can have")
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(
        base_url=base_url,
        headers=headers,
        timeout=httpx.Timeout(timeout_s, connect=5.0),
        transport=transport,
    )


def unreachable(base_url: str, error: httpx.HTTPError) -> OctavoError:
    """What is said of a request that got no answer."""
    if isinstance(error, httpx.ConnectError):
        return UnavailableError(
            f"nothing answers at {base_url}. Start the platform with `octavo up -f "
            "examples/01-smollm2.yaml` (or `make run`), or give its address with --url."
        )
    return UnavailableError(f"{base_url}: {type(error).__name__}: {error}")


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise ServerError(str(event["error"].get("message", event["error"])))
        yield event


def _take(chunk: Mapping[str, Any], answer: Answer) -> str:
    """The chunk's text; its finish reason and usage go into `answer`."""
    if usage := chunk.get("usage"):
        details = usage.get("prompt_tokens_details") or {}
        answer.usage = Usage(
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=details.get("cached_tokens") or 0,
            completion_tokens=usage["completion_tokens"],
        )
    text = ""
    for choice in chunk.get("choices", []):
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text += choice.get("delta", {}).get("content") or choice.get("text") or ""
    return text


def said_error(response: httpx.Response) -> OctavoError:
    """What the server said of a request that it did not serve."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200] or response.reason_phrase
    kind = ClientError if response.is_client_error else ServerError
    return kind(f"the server answered {response.status_code}: {message}")
