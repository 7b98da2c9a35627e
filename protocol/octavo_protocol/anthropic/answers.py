"""Answers of /v1/messages: messages, the events of a stream, and errors."""

from typing import Any, Literal

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
# Anthropic's names of what went wrong, by HTTP status.
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    text: str = ""


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """signature: a proof of origin elsewhere; empty here, and never checked."""

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct, kw_only=True):
    """input_tokens: of the prompt without those that the prefix cache supplied."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class AnthropicMessage(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    input_tokens: int


class MessageStart(msgspec.Struct):
    message: AnthropicMessage
    type: Literal["message_start"] = "message_start"


class BlockStart(msgspec.Struct):
    index: int
    content_block: ContentBlock
    type: Literal["content_block_start"] = "content_block_start"


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct):
    index: int
    delta: TextDelta | ThinkingDelta | InputDelta
    type: Literal["content_block_delta"] = "content_block_delta"


class BlockStop(msgspec.Struct):
    index: int
    type: Literal["content_block_stop"] = "content_block_stop"


class StopDelta(msgspec.Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct):
    delta: StopDelta
    usage: MessageUsage
    type: Literal["message_delta"] = "message_delta"


class MessageStop(msgspec.Struct):
    type: Literal["message_stop"] = "message_stop"


class Ping(msgspec.Struct):
    type: Literal["ping"] = "ping"


class ErrorDetail(msgspec.Struct):
    type: str
    message: str


class ErrorEvent(msgspec.Struct):
    """Also the body of an error answer."""

    error: ErrorDetail
    type: Literal["error"] = "error"


StreamEvent = (
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | Ping
    | ErrorEvent
)


def error_event(status: int, message: str) -> ErrorEvent:
    """An error in Anthropic's envelope, under the name that goes with the status."""
    return ErrorEvent(ErrorDetail(_ERROR_TYPES.get(status, "api_error"), message))
