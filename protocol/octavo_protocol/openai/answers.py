"""OpenAI wire types: answers. msgspec structs: streamed chunks are encoded once per token."""

import time
from typing import Any, Literal

import msgspec


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts of a request; cached_tokens are those that the prefix cache supplied.

    completion_tokens_details: only where the server splits reasoning off.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


def usage(
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
    reasoning_tokens: int | None = None,
) -> Usage:
    counted = Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(cached_tokens),
    )
    if reasoning_tokens is not None:
        counted.completion_tokens_details = CompletionTokensDetails(reasoning_tokens)
    return counted


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """The older form of /v1/completions: parallel lists; offsets count characters of the text.

    The first token of an echoed prompt has no log-probability: None.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(msgspec.Struct):
    """How likely a prompt token was; the best has rank 1."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


# Per token: by token id; None for the first of a prompt.
WirePromptLogprobs = list[dict[str, PromptLogprob] | None]


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """arguments: JSON text; in a stream its next piece."""

    name: str | None = None
    arguments: str | None = None


class CalledTool(msgspec.Struct):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class CalledToolPiece(msgspec.Struct, omit_defaults=True):
    """A piece of a streamed call; only a call's first has id, type and name."""

    index: int
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class AssistantMessage(msgspec.Struct, kw_only=True):
    content: str | None
    role: str = "assistant"
    refusal: str | None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[CalledTool] | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | None = None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    output_logprobs: WirePromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    model: str
    choices: list[ChatChoice]
    usage: Usage
    created: int = msgspec.field(default_factory=lambda: int(time.time()))
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    prompt_logprobs: WirePromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CalledToolPiece] | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | msgspec.UnsetType = msgspec.UNSET
    token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    model: str
    created: int
    choices: list[ChatChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    prompt_token_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    prompt_text: str | msgspec.UnsetType = msgspec.UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: WirePromptLogprobs | None = None
    prompt_text: str | msgspec.UnsetType = msgspec.UNSET
    output_logprobs: WirePromptLogprobs | msgspec.UnsetType = msgspec.UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The whole answer of /v1/completions."""

    id: str
    model: str
    choices: list[CompletionChoice]
    created: int
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None


class CompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a streamed answer of /v1/completions."""

    id: str
    model: str
    choices: list[CompletionChoice]
    created: int
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct):
    id: str
    created: int
    max_model_len: int | None
    root: str | None = None
    parent: str | None = None
    object: Literal["model"] = "model"
    owned_by: str = "octavo"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"


class TokenizeResponse(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct):
    prompt: str


def sse(event: Any) -> bytes:
    """One server-sent event whose data is `event` as JSON."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


SSE_DONE = b"data: [DONE]\n\n"
