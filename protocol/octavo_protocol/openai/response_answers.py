"""Answers of /v1/responses: the response object, its output items, and the events of a stream."""

from typing import Any, Literal

import msgspec

from octavo_protocol.openai.answers import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, kw_only=True, tag_field="type", tag="output_text"):
    """logprobs: one entry per token of the text, where asked for."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    text: str = ""


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus = "in_progress"
    content: list[OutputText] = []


class ReasoningItem(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    status: ItemStatus = "in_progress"
    summary: list[Any] = []
    content: list[ReasoningText] = []


class FunctionCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """call_id: what the function's output refers to. arguments: JSON text."""

    id: str
    call_id: str
    name: str
    status: ItemStatus = "in_progress"
    arguments: str = ""


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens_details: OutputTokensDetails


class ResponseError(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Response(msgspec.Struct, kw_only=True):
    """The answer. What the request set is repeated in it."""

    id: str
    model: str
    created_at: int
    object: Literal["response"] = "response"
    status: ResponseStatus = "in_progress"
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    background: bool = False
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: str = "auto"
    store: bool = False
    temperature: float | None = None
    text: dict[str, Any] | None = None
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: str = "disabled"
    user: str | None = None


class Event(msgspec.Struct, kw_only=True):
    """type: also the name of the server-sent event. sequence_number: counted from 0."""

    type: str
    sequence_number: int


class ResponseEvent(Event, kw_only=True):
    """response.created, .in_progress, .completed, .incomplete and .failed."""

    response: Response


class ItemEvent(Event, kw_only=True):
    """response.output_item.added and .done."""

    output_index: int
    item: OutputItem


class PartEvent(Event, kw_only=True):
    """response.content_part.added and .done."""

    item_id: str
    output_index: int
    content_index: int
    part: OutputText | ReasoningText


class TextDeltaEvent(Event, kw_only=True):
    """response.output_text.delta, and response.reasoning_text.delta, which has no logprobs."""

    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET


class TextDoneEvent(Event, kw_only=True):
    """response.output_text.done and response.reasoning_text.done."""

    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET


class ArgumentsDeltaEvent(Event, kw_only=True):
    """response.function_call_arguments.delta"""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(Event, kw_only=True):
    """response.function_call_arguments.done"""

    item_id: str
    output_index: int
    name: str
    arguments: str


def named_event(event: Any) -> bytes:
    """One server-sent event with its name, which is the `type` of its data."""
    return b"event: %s\ndata: %s\n\n" % (event.type.encode(), msgspec.json.encode(event))
