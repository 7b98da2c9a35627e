"""OpenAI wire types: requests as the router and every replica parse them.

Unknown fields are refused by name with the nearest known one (OpenAI does so; vLLM ignores them).
Fields that Octavo knows but cannot honour yet are accepted only at the value that changes nothing.
"""

import difflib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT, MAX_LOGPROBS, SamplingParams

_T = TypeVar("_T")
# A list that ends at its first bad item. Only that one is reported; with a complaint for each, a
# body of a few megabytes would hold the server for half a minute and gigabytes of memory.
_List = Annotated[list[_T], Field(fail_fast=True)]

# Fields of OpenAI's and vLLM's surface that have no effect on the answer: accepted and dropped.
_HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
# Known fields that are not served yet, with the values that ask for nothing.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "functions": (None,),
    "function_call": (None, "none"),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "prompt_logprobs": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "use_beam_search": (None, False),
    "verbosity": (None,),
    "web_search_options": (None,),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _GenerationRequest(BaseModel):
    """Fields that chat and text completion share. `None` means: not given."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | _List[str] | None = None
    stop_token_ids: _List[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    add_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] = 0
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _screen(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        kept: dict[str, Any] = {}
        for name, value in data.items():
            if name in cls.model_fields:
                kept[name] = value
            elif name in _HARMLESS:
                continue
            elif name in _NOT_YET:
                if value not in _NOT_YET[name]:
                    raise ValueError(f"{name} is not supported by this server yet; leave it out")
            else:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"unknown field {name!r}{hint}")
        # For the fields whose default is not None, an explicit null means the default.
        return {
            name: value
            for name, value in kept.items()
            if value is not None or cls.model_fields[name].default is None
        }

    @model_validator(mode="after")
    def _check_stream_options(self) -> "_GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream=true")
        if isinstance(self.stop, list) and len(self.stop) > 4:
            raise ValueError(f"stop takes at most 4 strings, got {len(self.stop)}")
        return self

    def num_logprobs(self) -> int | None:
        raise NotImplementedError

    def sampling_params(
        self, defaults: SamplingParams, *, max_tokens: int | None
    ) -> SamplingParams:
        """These fields over `defaults` (the model's generation config).

        max_tokens: used when the request names none. Raises `ValidationError`.
        """
        given: dict[str, Any] = {
            name: value
            for name in (
                "temperature",
                "top_p",
                "top_k",
                "min_p",
                "presence_penalty",
                "frequency_penalty",
                "repetition_penalty",
            )
            if (value := getattr(self, name)) is not None
        }
        return msgspec.structs.replace(
            defaults,
            n=self.n,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            max_tokens=self.requested_max_tokens() or max_tokens,
            min_tokens=self.min_tokens,
            logprobs=self.num_logprobs(),
            skip_special_tokens=self.skip_special_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            **given,
        )

    def requested_max_tokens(self) -> int | None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValidationError(
                f"max_tokens must be at least 1, got {self.max_tokens}", parameter="max_tokens"
            )
        return self.max_tokens


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | _List[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def as_template_input(self) -> dict[str, Any]:
        """The message as chat templates expect it: text content joined, absent fields left out."""
        content = self.content
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        message: dict[str, Any] = {"role": self.role, "content": content or ""}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatCompletionRequest(_GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[_List[ChatMessage], Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None:
            if not self.logprobs:
                raise ValueError("top_logprobs needs logprobs=true")
            if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
                raise ValueError(
                    f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {self.top_logprobs}"
                )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message=true needs add_generation_prompt=false")
        if self.echo:
            raise ValueError("echo is not supported for chat; leave it out")
        return self

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


class CompletionRequest(_GenerationRequest):
    """Body of POST /v1/completions. `prompt` may be text, token ids, or a list of either."""

    prompt: str | _List[str] | _List[int] | _List[_List[int]]
    logprobs: int | None = None
    echo: bool = False

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {self.logprobs}")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo together with logprobs is not supported yet")
        return self

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one. Raises `ValidationError` for an empty list."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ValidationError("prompt cannot be empty", parameter="prompt")
        if isinstance(prompt[0], int):
            return [list(prompt)]  # one prompt of token ids
        return list(prompt)


class TokenizeRequest(BaseModel):
    """Body of POST /tokenize: `prompt` or `messages`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[_List[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message=true needs add_generation_prompt=false")
        return self


class DetokenizeRequest(BaseModel):
    """Body of POST /detokenize."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    tokens: _List[int]


def validation_error(error: PydanticValidationError) -> ValidationError:
    """The first complaint of pydantic as our error, led by the path of the field."""
    first = error.errors(include_url=False)[0]
    path = ".".join(
        str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()
    )
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return ValidationError(message)
    shown = repr(first.get("input"))
    if len(shown) > 80:
        shown = shown[:77] + "..."
    suffix = "" if first["type"] == "missing" else f" (got {shown})"
    return ValidationError(f"{path}: {message}{suffix}", parameter=path)
