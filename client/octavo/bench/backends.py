"""How requests and their streams look on each API that can be measured. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

BackendName = Literal[
    "openai",
    "vllm",
    "openai-chat",
    "openai-responses",
    "openai-embeddings",
    "openai-embeddings-chat",
    "vllm-pooling",
    "vllm-rerank",
]
Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Event:
    """What one event of a stream says. text: None where it is no output."""

    text: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """body: (model, prompt, number of tokens) to the request. read: an event of the stream, or the
    whole answer where there is none.
    """

    endpoint: str
    takes_token_ids: bool
    body: Callable[[str, Prompt, int], dict[str, Any]]
    read: Callable[[Mapping[str, Any]], Event]
    is_streamed: bool = True


def _text_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": num_tokens, **_streamed(model)}


def _chat_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "max_completion_tokens": num_tokens, **_streamed(model)}


def _responses_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    return {"model": model, "input": prompt, "max_output_tokens": num_tokens, "stream": True}


def _input_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    return {"model": model, "input": prompt}


def _messages_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": prompt}]}


def _rerank_body(model: str, prompt: Prompt, num_tokens: int) -> dict[str, Any]:
    """The first sixth of the prompt's words asks for the rest."""
    words = str(prompt).split()
    num_asking = max(1, len(words) // 6)
    query, document = " ".join(words[:num_asking]), " ".join(words[num_asking:])
    return {"model": model, "query": query, "documents": [document]}


def _streamed(model: str) -> dict[str, Any]:
    return {"model": model, "stream": True, "stream_options": {"include_usage": True}}


def _read_chunk(chunk: Mapping[str, Any]) -> Event:
    """A chunk of a text or chat completion; one with a choice is output, its first one included."""
    if error := chunk.get("error"):
        return Event(error=_message(error))
    usage = chunk.get("usage") or {}
    text = None
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta")
        if delta is None:
            text = choice.get("text") or ""
        elif delta.get("content") or delta.get("reasoning") or "role" not in delta:
            text = delta.get("content") or delta.get("reasoning") or ""
    details = usage.get("prompt_tokens_details") or {}
    return Event(
        text,
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        details.get("cached_tokens"),
    )


def _read_response_event(event: Mapping[str, Any]) -> Event:
    match event.get("type"):
        case "response.output_text.delta" | "response.reasoning_text.delta":
            return Event(text=event.get("delta") or "")
        case "response.completed" | "response.incomplete":
            usage = event["response"].get("usage") or {}
            details = usage.get("input_tokens_details") or {}
            return Event(
                None,
                usage.get("input_tokens"),
                usage.get("output_tokens"),
                details.get("cached_tokens"),
            )
        case "response.failed":
            return Event(error=_message(event["response"].get("error")))
        case "error":
            return Event(error=_message(event))
    return Event(error=_message(event["error"])) if event.get("error") else Event()


def _read_pooled(answer: Mapping[str, Any]) -> Event:
    """Vectors or ranks: no text and no tokens."""
    return Event("", answer["usage"]["prompt_tokens"], 0)


def _message(error: Any) -> str:
    return str(error.get("message") if isinstance(error, Mapping) else error)


_TEXT = Backend("/v1/completions", True, _text_body, _read_chunk)
BACKENDS: dict[BackendName, Backend] = {
    "openai": _TEXT,
    "vllm": _TEXT,
    "openai-chat": Backend("/v1/chat/completions", False, _chat_body, _read_chunk),
    "openai-responses": Backend("/v1/responses", False, _responses_body, _read_response_event),
    "openai-embeddings": Backend("/v1/embeddings", True, _input_body, _read_pooled, False),
    "openai-embeddings-chat": Backend("/v1/embeddings", False, _messages_body, _read_pooled, False),
    "vllm-pooling": Backend("/pooling", True, _input_body, _read_pooled, False),
    "vllm-rerank": Backend("/v1/rerank", False, _rerank_body, _read_pooled, False),
}
