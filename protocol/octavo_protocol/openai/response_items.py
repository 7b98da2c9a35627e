"""Input items of /v1/responses, and the chat messages that they are."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage, ContentPart
from octavo_protocol.openai.tools import ToolCall, ToolFunctionCall

# The fields that each type of item needs.
_NEEDED: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class InputItem(BaseModel):
    """One item of a conversation. Output items of earlier answers are input items, too."""

    model_config = ConfigDict(extra="ignore")

    type: str = "message"
    role: str | None = None
    content: str | List[ContentPart | str] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | List[ContentPart | str] | None = None
    summary: List[ContentPart] | None = None

    @model_validator(mode="after")
    def _check(self) -> "InputItem":
        kind = self.type[:40]
        if kind not in _NEEDED:
            raise ValueError(
                f"input items of type {kind!r} are not supported; there are "
                + ", ".join(sorted(_NEEDED))
            )
        for name in _NEEDED[kind]:
            if getattr(self, name) is None:
                raise ValueError(f"an input item of type {kind!r} needs {name}")
        return self

    def reasoning_text(self) -> str:
        """What a reasoning item says: its own text, else its summary."""
        said: dict[str, Any] = {"content": self.content or self.summary or ""}
        return ChatMessage(role="assistant", **said).text()


def chat_messages(items: Iterable[InputItem]) -> list[ChatMessage]:
    """What one turn of the assistant said in several items (reasoning, text, calls) is one message.

    Raises `ValidationError` for content that is not text.
    """
    messages: list[ChatMessage] = []
    turn: ChatMessage | None = None  # of the assistant, while its items come one after the other
    for item in items:
        if item.type == "function_call_output":
            turn = None
            messages.append(
                ChatMessage(role="tool", tool_call_id=item.call_id, content=item.output)
            )
        elif item.type == "message" and item.role != "assistant":
            turn = None
            messages.append(ChatMessage(role=item.role or "", content=item.content))
        else:
            if turn is None or not _continues(turn, item):
                turn = ChatMessage(role="assistant")
                messages.append(turn)
            _add(turn, item)
    return messages


def _continues(turn: ChatMessage, item: InputItem) -> bool:
    """Whether `item` may follow in the same message: reasoning, then text, then calls."""
    if item.type == "function_call":
        return True
    if item.type == "message":
        return turn.content is None and not turn.tool_calls
    return False


def _add(turn: ChatMessage, item: InputItem) -> None:
    if item.type == "reasoning":
        turn.reasoning = item.reasoning_text()
    elif item.type == "message":
        turn.content = item.content
    else:
        function = ToolFunctionCall(name=item.name or "", arguments=item.arguments)
        turn.tool_calls = [*(turn.tool_calls or []), ToolCall(id=item.call_id, function=function)]
