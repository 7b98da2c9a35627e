"""POST /v1/messages and /v1/messages/count_tokens: the requests, and the chat that they are."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.anthropic.blocks import Block, Message, chat_messages, has_text, texts
from octavo_protocol.openai.base import Refused, screened, validation_error
from octavo_protocol.openai.chat import ChatCompletionRequest
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage
from octavo_protocol.openai.response_format import JsonSchemaFormat, ResponseFormat
from octavo_protocol.openai.strict import Strict
from octavo_protocol.openai.tools import (
    FunctionDefinition,
    NamedFunction,
    NamedToolChoice,
    Tool,
    ToolChoice,
)
from octavo_protocol.sampling_params import MAX_INT

_MIN_THINKING_BUDGET = 1024
# Fields of Anthropic's surface that have no effect on the answer: accepted and dropped.
_HARMLESS = frozenset(
    {
        *("metadata", "service_tier", "cache_control", "betas", "diagnostics", "inference_geo"),
        *("speed", "user_profile_id", "workspace_id", "context_management"),
    }
)
_REFUSED: Refused = {
    "container": ((None,), "this server runs no code; leave it out"),
    "mcp_servers": ((None, []), "this server calls no others; offer the tools yourself"),
    "kv_transfer_params": ((None, {}), "Octavo does not move KV blocks between replicas"),
}


class AnthropicTool(BaseModel):
    """type: absent or "custom"; tools that Anthropic defines have other types."""

    model_config = ConfigDict(extra="ignore")

    type: str | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> "AnthropicTool":
        if self.type not in (None, "custom"):
            raise ValueError(
                f"tools of type {self.type[:40]!r} are not supported: this server runs no tools. "
                "Describe it with name and input_schema and run it yourself"
            )
        return self

    def as_tool(self) -> Tool:
        """Raises pydantic's error for a name that functions may not have."""
        return Tool(
            function=FunctionDefinition(
                name=self.name,
                description=self.description,
                parameters=self.input_schema,
                strict=self.strict,
            )
        )


class AnthropicToolChoice(Strict):
    """any: some tool must be called; tool: the one that `name` says."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _check(self) -> "AnthropicToolChoice":
        if self.type == "tool" and self.name is None:
            raise ValueError("type tool needs name")
        return self

    def as_tool_choice(self) -> ToolChoice:
        if self.type == "tool":
            return NamedToolChoice(function=NamedFunction(name=self.name or ""))
        return "required" if self.type == "any" else self.type


class Thinking(BaseModel):
    """budget_tokens: the most tokens of thinking, where it is enabled."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=_MIN_THINKING_BUDGET, le=MAX_INT)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Thinking":
        if self.type == "enabled" and self.budget_tokens is None:
            raise ValueError("type enabled needs budget_tokens")
        return self


class OutputFormat(Strict):
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """effort: how hard the model thinks. format: shape of the answer."""

    model_config = ConfigDict(extra="ignore")

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class _Conversation(BaseModel):
    """What a request to answer and one to count have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    messages: Annotated[List[Message], Field(min_length=1)]
    system: str | List[Block] | None = None
    tools: List[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _screen(cls, data: Any) -> Any:
        return screened(cls, data, harmless=_HARMLESS, refused=_REFUSED)

    def to_chat(self) -> ChatCompletionRequest:
        """The chat request that this one is. Pure. Raises `ValidationError`."""
        try:
            return ChatCompletionRequest(**self._chat_fields())
        except PydanticValidationError as error:
            raise validation_error(error) from error

    def _chat_fields(self) -> dict[str, Any]:
        config, choice = self.output_config, self.tool_choice
        last = self.messages[-1]
        continues = last.role == "assistant" and has_text(last)
        shape = config.format if config is not None else None
        return {
            "model": self.model,
            "messages": [*self._system(), *chat_messages(self.messages)],
            "tools": [tool.as_tool() for tool in self.tools or []] or None,
            "tool_choice": choice.as_tool_choice() if choice is not None else None,
            "parallel_tool_calls": not (choice is not None and choice.disable_parallel_tool_use),
            "reasoning_effort": config.effort if config is not None else None,
            "response_format": _response_format(shape) if shape is not None else None,
            "thinking_token_budget": self.thinking.budget_tokens if self.thinking else None,
            "chat_template_kwargs": self._template_kwargs(),
            # An answer that the client has begun is continued.
            "continue_final_message": continues,
            "add_generation_prompt": not continues,
        }

    def _system(self) -> list[ChatMessage]:
        if not self.system:
            return []
        content = self.system if isinstance(self.system, str) else texts(self.system)
        return [ChatMessage(role="system", content=content)]

    def _template_kwargs(self) -> Mapping[str, Any] | None:
        """`thinking` as the switches that templates know, under those that the client set."""
        given = self.chat_template_kwargs
        if self.thinking is None or self.thinking.type == "adaptive":
            return given
        is_on = self.thinking.type == "enabled"
        return {"enable_thinking": is_on, "thinking": is_on} | (given or {})


class CountTokensRequest(_Conversation):
    """Body of POST /v1/messages/count_tokens."""


class MessagesRequest(_Conversation):
    """Body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)]
    stream: bool = False
    stop_sequences: List[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    cache_salt: str | None = None
    priority: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] = 0
    request_id: str | None = None
    vllm_xargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_budget(self) -> "MessagesRequest":
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget >= self.max_tokens:
            raise ValueError(
                f"thinking.budget_tokens ({budget}) must be less than max_tokens "
                f"({self.max_tokens})"
            )
        return self

    def _chat_fields(self) -> dict[str, Any]:
        same = ("stream", "temperature", "top_k", "top_p", "cache_salt", "priority", "request_id")
        return super()._chat_fields() | {
            **{name: getattr(self, name) for name in same},
            "vllm_xargs": self.vllm_xargs,
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
        }


def _response_format(shape: OutputFormat) -> ResponseFormat:
    schema = JsonSchemaFormat.model_validate({"schema": shape.json_schema})
    return ResponseFormat(type="json_schema", json_schema=schema)
