"""Conversations of `LLM.chat` as prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError as PydanticValidationError

from octavo.chat_templates import load_chat_template
from octavo.prompts import PromptRenderer, RenderedPrompt
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import ValidationError
from octavo_protocol.openai import ChatMessage, validation_error
from octavo_protocol.openai.messages import ContentFormat

ChatCompletionMessageParam = Mapping[str, Any]
_FORMATS = ("auto", "string", "openai")
# What `chat` has arguments of its own for.
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "self")


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations are rendered; the arguments of `LLM.chat` by their names.

    Raises `ValidationError` for values that contradict each other or are none of the choices.
    """

    chat_template: str | None = None
    content_format: ContentFormat = "auto"
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.content_format not in _FORMATS:
            raise ValidationError(
                f"chat_template_content_format must be one of {', '.join(_FORMATS)}, got "
                f"{self.content_format!r}",
                parameter="chat_template_content_format",
            )
        if self.add_generation_prompt and self.continue_final_message:
            raise ValidationError(
                "continue_final_message=True needs add_generation_prompt=False",
                parameter="continue_final_message",
            )
        if self.tools is not None and not (
            isinstance(self.tools, Sequence)
            and all(isinstance(tool, Mapping) for tool in self.tools)
        ):
            raise ValidationError(
                "tools must be a list of dicts, {'type': 'function', 'function': {...}}",
                parameter="tools",
            )
        if not isinstance(self.template_kwargs, Mapping | None):
            raise ValidationError(
                "chat_template_kwargs must be a dict of template variables, not "
                f"{type(self.template_kwargs).__name__}",
                parameter="chat_template_kwargs",
            )
        for name in _RESERVED:
            if name in (self.template_kwargs or {}):
                raise ValidationError(
                    f"chat_template_kwargs may not set {name!r}", parameter="chat_template_kwargs"
                )

    def render(
        self, messages: Any, renderer: PromptRenderer, options: TokenizationOptions
    ) -> RenderedPrompt:
        """The conversation through the template. It owns the special tokens."""
        tokenizer = renderer.tokenizer
        if tokenizer is None:
            raise ValidationError(
                "skip_tokenizer_init=True leaves no tokenizer: chat needs one", parameter="messages"
            )
        variables = dict(self.template_kwargs or {})
        template = load_chat_template(variables.pop("chat_template", None) or self.chat_template)
        content_format = self.content_format
        if content_format == "auto":
            content_format = tokenizer.content_format(template)
        text = tokenizer.apply_chat_template(
            [_template_input(message, content_format) for message in messages],
            chat_template=template,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            tools=[dict(tool) for tool in self.tools] if self.tools else None,
            **variables,
        )
        token_ids = renderer.encode(text, options, add_special_tokens=False)
        return RenderedPrompt(token_ids, text)


def as_conversations(messages: Any) -> list[Any]:
    """One conversation (a list of messages) or many, as a list. Raises TypeError for others."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise TypeError("messages must be a list of messages, or a list of such lists")
    if isinstance(messages[0], Mapping | ChatMessage):
        return [messages]
    for each in messages:
        if not isinstance(each, Sequence) or isinstance(each, str) or not each:
            raise TypeError("messages must be a list of messages, or a list of such lists")
    return list(messages)


def _template_input(message: Any, content_format: ContentFormat) -> dict[str, Any]:
    try:
        return ChatMessage.model_validate(message).as_template_input(content_format)
    except PydanticValidationError as error:
        raise validation_error(error) from error
