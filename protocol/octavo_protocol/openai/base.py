"""What chat and text completion requests have in common.

Unknown fields are refused by name with the nearest known one (OpenAI does so; vLLM ignores them).
Fields of vLLM that Octavo cannot honour are accepted only at the value that changes nothing, and
old names are translated.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic import ValidationError as PydanticValidationError

from octavo_protocol.errors import ValidationError
from octavo_protocol.guided_names import translate_guided
from octavo_protocol.limits import limit
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.response_format import (
    ResponseFormat,
    StructuredOutputs,
    structured_outputs,
)
from octavo_protocol.openai.strict import Strict, unknown_field
from octavo_protocol.sampling_params import (
    MAX_INT,
    RepetitionDetectionParams,
    SamplingParams,
    clamped,
)
from octavo_protocol.structured_outputs import nesting

# Fields of OpenAI's and vLLM's surface that have no effect on the answer: accepted and dropped.
_HARMLESS = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "session_id", "prediction", "verbosity"),
    }
)
_TEXT_ONLY = "Octavo serves text models; leave it out"
_NO_TRANSFER = "Octavo does not move KV blocks between replicas; leave it out"
# Known fields that are not honoured: the values that ask for nothing, and what to do instead.
Refused = Mapping[str, tuple[tuple[Any, ...], str]]
_REFUSED: Refused = {
    "audio": ((None,), _TEXT_ONLY),
    "modalities": ((None, ["text"]), _TEXT_ONLY),
    "mm_payload": ((None,), _TEXT_ONLY),
    "mm_processor_kwargs": ((None, {}), _TEXT_ONLY),
    "media_io_kwargs": ((None, {}), _TEXT_ONLY),
    "prompt_embeds": ((None,), "send prompt as text or token ids"),
    "best_of": ((None, 1), "ask for that many with n and keep the best by its log-probabilities"),
    "functions": ((None,), "write them as tools"),
    "function_call": ((None, "none"), "write it as tool_choice"),
    "web_search_options": ((None,), "there is no web search here; leave it out"),
    "watermarking": ((None, False), "there is no watermarking here; leave it out"),
    "kv_transfer_params": ((None, {}), _NO_TRANSFER),
    "ec_transfer_params": ((None, {}), _NO_TRANSFER),
    "return_weight_versions": ((None, False), "weights have no versions here; leave it out"),
    "routed_experts_prompt_start": ((None, 0), "experts are not reported; leave it out"),
    "return_token_offsets": ((None, False), "offsets are not reported; leave it out"),
}
_SAMPLING_NAMES = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
)
MAX_STOP_STRINGS = limit("VLLM_MAX_STOP_STRINGS", 4)
_SALT_FORBIDDEN = frozenset("@/\\\0")
# Room for schemas (64 levels) and structural tags (80) inside a body. What is deeper would exhaust
# the stack of whoever walks it next.
_MAX_DEPTH = 128
# Each costs some microseconds to check, in which no other request is served.
_MAX_NESTED = 2**16


def check_shape(data: dict[str, Any], *, prompts: Collection[str] = ("prompt",)) -> None:
    """Raises ValueError for a body nested too deeply, or of too many objects and lists. The fields
    `prompts` are left out: they are long lists, and their type knows how deep they are.
    """
    num_nested = 0
    for depth, level in enumerate(
        nesting({name: data[name] for name in data if name not in prompts})
    ):
        num_nested += len(level)
        if depth > _MAX_DEPTH:
            raise ValueError(f"the body is nested deeper than {_MAX_DEPTH} levels")
        if num_nested > _MAX_NESTED:
            raise ValueError(f"the body has more than {_MAX_NESTED} objects and lists")


def _check_numbers(bias: dict[str, Any]) -> dict[str, float]:
    for token_id, value in bias.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the bias of token {token_id[:20]!r} must be a number")
    return bias


LogitBias = Annotated[dict[str, Any], AfterValidator(_check_numbers)]


def screened(
    kind: type[BaseModel],
    data: Any,
    *,
    harmless: Collection[str],
    refused: Refused,
    prompts: Collection[str] = ("prompt",),
) -> dict[str, Any]:
    """The fields of the body `data` that `kind` has. Raises ValueError for a field that it does
    not have, unless that is `harmless`, or `refused` with a value that asks for nothing.

    For the fields whose default is not None, an explicit null means the default. prompts: see
    `check_shape`.
    """
    if not isinstance(data, dict):
        raise ValueError("the body must be a JSON object")
    check_shape(data, prompts=prompts)
    fields = kind.model_fields
    kept: dict[str, Any] = {}
    for name, value in data.items():
        if name in fields:
            if value is not None or fields[name].default is None:
                kept[name] = value
        elif name in refused:
            neutral, advice = refused[name]
            if value not in neutral:
                raise ValidationError(f"{name} is not supported: {advice}", parameter=name)
        elif name not in harmless:
            raise unknown_field(name, fields)
    return kept


def check_salt(salt: str | None) -> None:
    """Raises `ValidationError` for a salt that cannot be part of a key."""
    if salt is not None and (len(salt) > 128 or _SALT_FORBIDDEN & set(salt)):
        raise ValidationError(
            "cache_salt takes at most 128 characters, none of them '@', '/', '\\' or NUL",
            parameter="cache_salt",
        )


class StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class RepetitionDetection(Strict):
    """Ends an output whose last tokens repeat; see `RepetitionDetectionParams`."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0


class GenerationRequest(BaseModel):
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
    stop: str | List[str] | None = None
    stop_token_ids: List[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    spaces_between_special_tokens: bool = True
    logit_bias: LogitBias | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: List[int] | None = None
    allowed_token_ids: List[int] | None = None
    bad_words: List[str] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetection | None = None
    stream_interval: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    vllm_xargs: dict[str, Any] | None = None
    priority: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] = 0
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_output_logprobs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _screen(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("the body must be a JSON object")
        if "best_of" in data and data["best_of"] == data.get("n"):
            data = {name: value for name, value in data.items() if name != "best_of"}
        return screened(cls, translate_guided(data), harmless=_HARMLESS, refused=_REFUSED)

    @model_validator(mode="after")
    def _check_stream_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise ValidationError(
                "stream_options is only allowed with stream=true", parameter="stream_options"
            )
        if isinstance(self.stop, list) and len(self.stop) > MAX_STOP_STRINGS:
            raise ValidationError(
                f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}",
                parameter="stop",
            )
        if self.logprob_token_ids is not None and self.num_logprobs() is None:
            raise ValidationError("logprob_token_ids needs logprobs", parameter="logprob_token_ids")
        if self.stream and self.prompt_logprobs not in (None, 0):
            raise ValidationError(
                "prompt_logprobs is not allowed with stream=true", parameter="prompt_logprobs"
            )
        if self.stream and self.return_output_logprobs:
            raise ValidationError(
                "return_output_logprobs is not allowed with stream=true",
                parameter="return_output_logprobs",
            )
        if self.stream and self.use_beam_search:
            raise ValidationError(
                "use_beam_search is not allowed with stream=true", parameter="use_beam_search"
            )
        check_salt(self.cache_salt)
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
            name: value for name in _SAMPLING_NAMES if (value := getattr(self, name)) is not None
        }
        if self.repetition_detection is not None:
            given["repetition_detection"] = RepetitionDetectionParams(
                **self.repetition_detection.model_dump()
            )
        return msgspec.structs.replace(
            defaults,
            n=1 if self.use_beam_search else self.n,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            max_tokens=self.requested_max_tokens() or max_tokens,
            min_tokens=self.min_tokens,
            logprobs=(self.num_logprobs() or None)
            if self.logprob_token_ids
            else self.num_logprobs(),
            prompt_logprobs=self.prompt_logprobs,
            logprob_token_ids=self.logprob_token_ids,
            skip_special_tokens=self.skip_special_tokens,
            spaces_between_special_tokens=self.spaces_between_special_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            structured_outputs=structured_outputs(self.response_format, self.structured_outputs),
            logit_bias=None if self.logit_bias is None else clamped(self.logit_bias),
            allowed_token_ids=self.allowed_token_ids,
            bad_words=self.bad_words,
            thinking_token_budget=self.thinking_token_budget,
            stream_interval=self.stream_interval,
            extra_args=self.vllm_xargs,
            skip_reading_prefix_cache=None,
            **given,
        )

    def truncated(self, token_ids: list[int], max_model_len: int) -> list[int]:
        """The prompt as `truncate_prompt_tokens` leaves it."""
        start, end = self.truncation(len(token_ids), max_model_len)
        return token_ids[start:end]

    def truncation(self, num_tokens: int, max_model_len: int) -> tuple[int, int]:
        """From where to where a prompt of `num_tokens` is used: -1 means as much as the model
        takes. The beginning is cut off unless truncation_side is "right".
        """
        limit = self.truncate_prompt_tokens
        if limit == -1:
            limit = max_model_len - 1
        if limit is None or num_tokens <= limit:
            return 0, num_tokens
        return (0, limit) if self.truncation_side == "right" else (num_tokens - limit, num_tokens)

    def requested_max_tokens(self) -> int | None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValidationError(
                f"max_tokens must be at least 1, got {self.max_tokens}", parameter="max_tokens"
            )
        return self.max_tokens


def validation_error(error: PydanticValidationError) -> ValidationError:
    """The first complaint of pydantic as our error, led by the path of the field. A complaint of
    ours about the fields of one object names its field itself.

    Where a field may be one of several types, there is a complaint of each: the one that got
    furthest into the value is about the type that was meant.
    """
    errors = error.errors(include_url=False)
    field = errors[0]["loc"][:1]
    first = max((each for each in errors if each["loc"][:1] == field), key=lambda e: len(e["loc"]))
    path = ".".join(str(part) for part in first["loc"] if _is_of_path(part))
    message = first["msg"].removeprefix("Value error, ")
    cause = first.get("ctx", {}).get("error")
    own = cause.parameter if isinstance(cause, ValidationError) else None
    parameter = ".".join(filter(None, (path, own)))
    if not path:
        return ValidationError(message, parameter=parameter or None)
    shown = repr(first.get("input"))
    if len(shown) > 80:
        shown = shown[:77] + "..."
    suffix = "" if first["type"] == "missing" else f" (got {shown})"
    return ValidationError(f"{path}: {message}{suffix}", parameter=parameter)


def _is_of_path(part: int | str) -> bool:
    """Whether a part of pydantic's location is a field or an index, not the name of a type."""
    return isinstance(part, int) or (part.isidentifier() and part.islower() and part != "str")
