"""POST /v1/chat/completions: the request."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.base import GenerationRequest
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage
from octavo_protocol.openai.tools import NamedToolChoice, Tool, ToolChoice

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[List[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: List[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: List[dict[str, Any]] | None = None
    echo: bool = False
    return_prompt_text: bool = False

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise ValidationError("top_logprobs needs logprobs=true", parameter="top_logprobs")
            if self.top_logprobs < -1:
                raise ValidationError(
                    "top_logprobs must be at least 0, or -1 for the whole vocabulary, got "
                    f"{self.top_logprobs}",
                    parameter="top_logprobs",
                )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValidationError(
                "continue_final_message=true needs add_generation_prompt=false",
                parameter="continue_final_message",
            )
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        if self.tools is not None and not self.tools:
            raise ValidationError("tools must not be empty; leave it out", parameter="tools")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) != len(names):
            raise ValidationError(
                "tools: every function needs a name of its own", parameter="tools"
            )
        if isinstance(self.tool_choice, NamedToolChoice):
            wanted = self.tool_choice.function.name
            if wanted not in names:
                raise ValidationError(
                    f"tool_choice names {wanted!r}, which is not among the tools",
                    parameter="tool_choice",
                )
        elif self.tool_choice == "required" and not names:
            raise ValidationError("tool_choice required needs tools", parameter="tool_choice")

    @property
    def effective_tool_choice(self) -> ToolChoice:
        """What an absent tool_choice means: auto with tools, none without."""
        if not self.tools:
            return "none"
        return self.tool_choice or "auto"

    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def requested_max_tokens(self) -> int | None:
        if self.max_completion_tokens is None:
            return super().requested_max_tokens()
        if self.max_completion_tokens < 1:
            raise ValidationError(
                f"max_completion_tokens must be at least 1, got {self.max_completion_tokens}",
                parameter="max_completion_tokens",
            )
        return self.max_completion_tokens
