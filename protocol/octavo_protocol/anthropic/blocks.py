"""Messages and content blocks of /v1/messages, and the chat messages that they are."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage, ContentPart
from octavo_protocol.openai.tools import ToolCall, ToolFunctionCall

# The fields that each type of block needs. What a redacted block thought, only its maker can read.
_NEEDED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}


class Block(BaseModel):
    """One content block. Others than those of text and tools are refused by their type."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | List[Block] | None" = None
    is_error: bool = False

    @model_validator(mode="after")
    def _check(self) -> "Block":
        kind = self.type[:40]
        if kind not in _NEEDED:
            raise ValueError(
                f"content blocks of type {kind!r} are not supported: this model takes text only"
            )
        for name in _NEEDED[kind]:
            if getattr(self, name) is None:
                raise ValueError(f"a content block of type {kind!r} needs {name}")
        return self


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: str | List[Block]


def chat_messages(messages: Iterable[Message]) -> list[ChatMessage]:
    """One message may become several: a user's tool results are messages of their own."""
    return [each for message in messages for each in _chat_messages(message)]


def texts(blocks: Iterable[Block]) -> list[ContentPart | str]:
    """The text of the text blocks."""
    return [block.text or "" for block in blocks if block.type == "text"]


def has_text(message: Message) -> bool:
    return isinstance(message.content, str) or bool(texts(message.content))


def _chat_messages(message: Message) -> Iterator[ChatMessage]:
    if isinstance(message.content, str):
        yield ChatMessage(role=message.role, content=message.content)
    elif message.role == "assistant":
        yield _assistant(message.content)
    else:
        results = [block for block in message.content if block.type == "tool_result"]
        yield from map(_tool_result, results)
        said = texts(message.content)
        if said or not results:
            yield ChatMessage(role=message.role, content=said)


def _assistant(blocks: list[Block]) -> ChatMessage:
    """The thinking, the text and the calls of one turn."""
    message = ChatMessage(role="assistant")
    if said := texts(blocks):
        message.content = said
    thoughts = [block.thinking or "" for block in blocks if block.type == "thinking"]
    if thoughts:
        message.reasoning = "\n".join(thoughts)
    calls = [
        ToolCall(
            id=block.id,
            function=ToolFunctionCall(name=block.name or "", arguments=json.dumps(block.input)),
        )
        for block in blocks
        if block.type == "tool_use"
    ]
    if calls:
        message.tool_calls = calls
    return message


def _tool_result(block: Block) -> ChatMessage:
    content = block.content if not isinstance(block.content, list) else texts(block.content)
    return ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=content or "")
