"""POST /v1/responses: the request, and the chat request that it is."""

import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.base import LogitBias, Refused, screened, validation_error
from octavo_protocol.openai.chat import ChatCompletionRequest, ReasoningEffort
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage
from octavo_protocol.openai.response_format import StructuredOutputs
from octavo_protocol.openai.response_items import InputItem, chat_messages
from octavo_protocol.openai.response_tools import (
    ResponseTool,
    ResponseToolChoice,
    TextConfig,
    chat_tools,
)
from octavo_protocol.sampling_params import MAX_INT

_LOGPROBS = "message.output_text.logprobs"
# Parts of an answer that there are elsewhere but not here; asking for them changes nothing.
_INCLUDABLE = frozenset(
    {
        _LOGPROBS,
        "reasoning.encrypted_content",
        "file_search_call.results",
        "web_search_call.results",
        "web_search_call.action.sources",
        "message.input_image.image_url",
        "computer_call_output.output.image_url",
        "code_interpreter_call.outputs",
    }
)
_HARMLESS = frozenset({"session_id", "stream_options", "prompt_cache_options", "moderation"})
_REFUSED: Refused = {
    "background": ((None, False), "keep the connection open, or stream"),
    "conversation": ((None,), "send the whole conversation as input"),
    "prompt": ((None,), "there are no prompt templates here; write the text into input"),
    "context_management": ((None, []), "shorten input yourself, or set truncation to auto"),
    "enable_response_messages": ((None, False), "this is for models of another chat format"),
    "previous_input_messages": ((None, []), "send the whole conversation as input"),
    "kv_transfer_params": ((None, {}), "Octavo does not move KV blocks between replicas"),
    "mm_processor_kwargs": ((None, {}), "Octavo serves text models; leave it out"),
}
# Fields that mean the same in a chat request.
_SHARED = (
    *("model", "stream", "temperature", "top_p", "top_k", "min_p", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("skip_special_tokens", "include_stop_str_in_output", "structured_outputs", "logit_bias"),
    *("cache_salt", "priority", "request_id", "include_reasoning", "chat_template_kwargs"),
    *("vllm_xargs", "parallel_tool_calls"),
)
STORE_VARIABLE = "VLLM_ENABLE_RESPONSES_API_STORE"


def is_store_enabled() -> bool:
    """Whether the environment asks for answers to be kept."""
    return os.environ.get(STORE_VARIABLE, "").strip().lower() not in ("", "0", "false")


class Reasoning(BaseModel):
    """summary: accepted; answers have the reasoning itself."""

    model_config = ConfigDict(extra="ignore")

    effort: ReasoningEffort | None = None
    summary: str | None = None


class ResponsesRequest(BaseModel):
    """Body of POST /v1/responses.

    store: answers are kept only where the server was started with storage; nothing else changes.
    Echoed in the answer and otherwise without effect: metadata, user, service_tier,
    safety_identifier, prompt_cache_key, prompt_cache_retention, max_tool_calls.
    """

    model_config = ConfigDict(extra="forbid")

    input: str | List[InputItem]
    instructions: str | None = None
    model: str | None = None
    stream: bool = False
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    previous_response_id: str | None = None
    store: bool = True
    include: List[str] | None = None
    text: TextConfig | None = None
    tools: List[ResponseTool] | None = None
    tool_choice: ResponseToolChoice | None = None
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    top_logprobs: Annotated[int, Field(ge=-1)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | List[str] | None = None
    stop_token_ids: List[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputs | None = None
    logit_bias: LogitBias | None = None
    cache_salt: str | None = None
    priority: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] = 0
    request_id: str | None = None
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _screen(cls, data: Any) -> Any:
        return screened(cls, data, harmless=_HARMLESS, refused=_REFUSED)

    @model_validator(mode="after")
    def _check(self) -> "ResponsesRequest":
        for name in self.include or []:
            if name not in _INCLUDABLE:
                raise ValidationError(f"include: there is no {name[:80]!r}", parameter="include")
        if self.text is not None and self.text.format is not None and self.structured_outputs:
            raise ValidationError(
                "text.format and structured_outputs: give only one", parameter="structured_outputs"
            )
        if not self.input:
            raise ValidationError("input must not be empty", parameter="input")
        return self

    @property
    def has_logprobs(self) -> bool:
        return _LOGPROBS in (self.include or [])

    @property
    def items(self) -> list[InputItem]:
        """`input` as items."""
        if isinstance(self.input, str):
            return [InputItem(role="user", content=self.input)]
        return list(self.input)

    def to_chat(self, earlier: Sequence[InputItem] = ()) -> ChatCompletionRequest:
        """The chat request that this one is. Pure.

        earlier: items of the stored conversation that this request continues. Raises
        `ValidationError`.
        """
        try:
            return self._as_chat(earlier)
        except PydanticValidationError as error:
            raise validation_error(error) from error
        except ValidationError:
            raise
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def _as_chat(self, earlier: Sequence[InputItem]) -> ChatCompletionRequest:
        messages = chat_messages([*earlier, *self.items])
        if self.instructions is not None:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        tools, tool_choice = chat_tools(self.tools, self.tool_choice)
        given: dict[str, Any] = {name: getattr(self, name) for name in _SHARED}
        text_format = self.text.format if self.text is not None else None
        return ChatCompletionRequest(
            messages=messages,
            tools=tools,
            tool_choice=tool_choice,
            max_completion_tokens=self.max_output_tokens,
            response_format=text_format.as_response_format() if text_format else None,
            reasoning_effort=self.reasoning.effort if self.reasoning is not None else None,
            logprobs=self.has_logprobs,
            top_logprobs=self.top_logprobs if self.has_logprobs else None,
            truncate_prompt_tokens=-1 if self.truncation == "auto" else None,
            **given,
        )
