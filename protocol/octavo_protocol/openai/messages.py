"""Messages of a chat, and how chat templates get them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.tools import ToolCall

ContentFormat = Literal["auto", "string", "openai"]
# Key of a part's text, by the part's type.
_TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_FUNCTIONS_OF_OLD = "function_call"


class ContentPart(BaseModel):
    """One part of a message's content. Only text is understood; the rest is refused by type."""

    model_config = ConfigDict(extra="allow")

    type: str = "text"

    def as_text(self) -> str:
        """Raises `ValidationError` for a part that is not text."""
        key = _TEXT_KEYS.get(self.type)
        if key is None:
            raise ValidationError(
                f"this model takes text only; a message has a part of type {self.type!r}",
                parameter="messages",
            )
        value = (self.model_extra or {}).get(key)
        if not isinstance(value, str):
            raise ValidationError(
                f"a message part of type {self.type!r} needs {key!r}, a string",
                parameter="messages",
            )
        return value


class ChatMessage(BaseModel):
    """One message. Fields that are not named here go to the chat template as they are.

    reasoning: what an assistant thought before its answer (`reasoning_content` is its older name).
    """

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | List[ContentPart | str] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: List[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    def text(self) -> str:
        """The text parts, joined by line breaks. Raises `ValidationError` for other parts."""
        return "\n".join(self.texts())

    def texts(self) -> list[str]:
        """The text of each part. Raises `ValidationError` for parts that are not text."""
        if isinstance(self.content, list):
            return [part if isinstance(part, str) else part.as_text() for part in self.content]
        return [] if self.content is None else [self.content]

    def as_template_input(self, content_format: ContentFormat = "string") -> dict[str, Any]:
        """The message as chat templates expect it; what is not given is left out.

        content_format: "openai" makes the content a list of {"type": "text", "text": …}, one for
        each part. The arguments of tool calls become objects, since templates print them with
        `tojson`.
        """
        message: dict[str, Any] = {
            name: value
            for name, value in (self.model_extra or {}).items()
            if value is not None and name != _FUNCTIONS_OF_OLD
        }
        message["role"] = self.role
        message["content"] = (
            [{"type": "text", "text": text} for text in self.texts()]
            if content_format == "openai"
            else self.text()
        )
        for name in ("name", "tool_call_id"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        reasoning = self.reasoning if self.reasoning is not None else self.reasoning_content
        if reasoning is not None:
            message["reasoning"] = message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [_template_call(call) for call in self.tool_calls]
        return message


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ValidationError(
                f"the arguments of the tool call {call.function.name!r} are not valid JSON",
                parameter="messages",
            ) from error
    given: dict[str, Any] = {
        "type": call.type,
        "function": {"name": call.function.name, "arguments": arguments},
    }
    return given if call.id is None else {"id": call.id, **given}
