"""POST /v1/embeddings, /pooling and /classify: the requests."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.limits import limit
from octavo_protocol.openai.base import Refused, check_salt, screened
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ChatMessage
from octavo_protocol.pooling import POOLING_TASKS, PoolingParams
from octavo_protocol.sampling_params import MAX_INT

EncodingFormat = Literal["float", "base64", "bytes", "bytes_only"]
EmbedDType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]
Conversation = list[ChatMessage]
Input = str | list[int] | Conversation
MAX_INPUTS = limit("OCTAVO_MAX_POOLING_INPUTS", 16_384)

_HARMLESS = frozenset({"user", "metadata", "store", "safety_identifier"})
_FORMER = "use_activation says so now: true (the default) gives normalised vectors, probabilities"
REFUSED: Refused = {
    "normalize": ((None,), _FORMER),
    "softmax": ((None,), _FORMER),
    "activation": ((None,), _FORMER),
    "padding": ((None, "do_not_pad"), "results do not depend on padding; leave it out"),
    "mm_processor_kwargs": ((None, {}), "Octavo serves text models; leave it out"),
    "media_io_kwargs": ((None, {}), "Octavo serves text models; leave it out"),
    "data": ((None,), "there are no plugins here; send input"),
}
# Names of tasks that are no more, and what to write.
_FORMER_TASKS = {
    "score": "send it to /score, or ask for classify",
    "encode": "write token_embed, or token_classify for a model of classes",
    "reward": "write classify, or token_classify for each token",
}


class PoolingRequest(BaseModel):
    """Fields that all pooling requests share. `None` means: not given.

    use_activation: normalised vectors, probabilities, scores from 0 to 1; None: as the model says.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] = 0
    cache_salt: str | None = None
    request_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _screen(cls, data: Any) -> Any:
        return screened(cls, data, harmless=_HARMLESS, refused=REFUSED, prompts=_prompts(data))

    @model_validator(mode="after")
    def _check_pooling(self) -> "PoolingRequest":
        if self.truncate_prompt_tokens == 0:
            raise ValidationError(
                "truncate_prompt_tokens must be at least 1, or -1 for as much as the model takes",
                parameter="truncate_prompt_tokens",
            )
        check_salt(self.cache_salt)
        return self

    def params(self, task: str) -> PoolingParams:
        """What the engine is asked for."""
        return PoolingParams(task=task, use_activation=self.use_activation)


class InputRequest(PoolingRequest):
    """Requests with one result for each input: text, token ids or a conversation."""

    input: (
        str | List[str] | List[int] | List[List[int]] | List[ChatMessage] | List[List[ChatMessage]]
    ) | None = None
    messages: Annotated[List[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_input(self) -> "InputRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValidationError(
                "continue_final_message=true needs add_generation_prompt=false",
                parameter="continue_final_message",
            )
        check_count(len(self.inputs()), "input")
        return self

    def inputs(self) -> list[Input]:
        """The inputs one by one. Raises `ValidationError` where there is none."""
        given: Any = self.input
        if self.messages is not None:
            return [self.messages]
        if isinstance(given, str):
            return [given]
        if not given or [] in given:
            raise ValidationError("input cannot be empty", parameter="input")
        if isinstance(given[0], int | ChatMessage):
            return [given]  # one prompt of token ids, one conversation
        return list(given)


class VectorRequest(InputRequest):
    """Requests whose results are vectors.

    encoding_format: float: JSON numbers; base64: the numbers' bytes; bytes: a body of all bytes,
    described in the header `metadata`; bytes_only: that body alone. embed_dtype, endianness: of
    the numbers, except in the format float.
    """

    dimensions: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    encoding_format: EncodingFormat = "float"
    embed_dtype: EmbedDType = "float32"
    endianness: Endianness = "native"

    def params(self, task: str) -> PoolingParams:
        return PoolingParams(
            task=task, use_activation=self.use_activation, dimensions=self.dimensions
        )


class EmbeddingRequest(VectorRequest):
    """Body of POST /v1/embeddings."""


class PoolRequest(VectorRequest):
    """Body of POST /pooling. task: None: the model's own."""

    task: str | None = None

    @model_validator(mode="after")
    def _check_task(self) -> "PoolRequest":
        if self.task is not None and self.task not in POOLING_TASKS:
            advice = _FORMER_TASKS.get(self.task, f"it is one of {', '.join(POOLING_TASKS)}")
            raise ValidationError(f"there is no task {self.task!r}: {advice}", parameter="task")
        return self


class ClassifyRequest(InputRequest):
    """Body of POST /classify."""


def check_count(count: int, name: str) -> None:
    """Raises `ValidationError` for more inputs than one request may have."""
    if count > MAX_INPUTS:
        raise ValidationError(
            f"{name}: at most {MAX_INPUTS} in one request, got {count}; send several requests",
            parameter=name,
        )


def _prompts(data: Any) -> tuple[str, ...]:
    """The fields of a body that may be long lists of numbers."""
    first = data.get("input") if isinstance(data, dict) else None
    while isinstance(first, list) and first:
        first = first[0]
    return () if isinstance(first, dict) else ("input",)
