"""Parameters and outputs of pooling requests (embeddings, classes, scores). Names are vLLM's."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import RequestStateStats
from octavo_protocol.sampling_params import RequestOutputKind

POOLING_TASKS = ("embed", "classify", "token_embed", "token_classify")


class LateChunkingParams(msgspec.Struct, omit_defaults=True):
    """Pools the tokens of a text in chunks of `chunk_size` tokens. token_embed only."""

    chunk_size: int

    def __post_init__(self) -> None:
        _check_positive("late_chunking_params.chunk_size", self.chunk_size)


class PoolingParams(msgspec.Struct, omit_defaults=True):
    """How the hidden states of one request become its output.

    use_activation: None = as the model was trained. dimensions: length of the vector, for models
    that were trained for several. step_tag_id, returned_token_ids: step reward models.

    Raises `ValidationError` that names the parameter.
    """

    use_activation: bool | None = None
    dimensions: int | None = None
    late_chunking_params: LateChunkingParams | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None
    task: str | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_kwargs: dict[str, Any] | None = None
    requires_token_ids: bool = False
    late_interaction_params: dict[str, Any] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY

    def __post_init__(self) -> None:
        if self.task is not None and self.task not in POOLING_TASKS:
            raise ValidationError(
                f"task must be one of {', '.join(POOLING_TASKS)}, got {self.task!r}",
                parameter="task",
            )
        if self.dimensions is not None:
            _check_positive("dimensions", self.dimensions)
        if self.late_chunking_params is not None and self.task not in (None, "token_embed"):
            raise ValidationError(
                f"late_chunking_params are for token_embed, not {self.task}",
                parameter="late_chunking_params",
            )
        if self.output_kind is not RequestOutputKind.FINAL_ONLY:
            raise ValidationError("output_kind must stay FINAL_ONLY", parameter="output_kind")

    def clone(self) -> "PoolingParams":
        return msgspec.structs.replace(self)


@dataclass(slots=True)
class PoolingOutput:
    """data: the pooled tensor: torch's offline, a NumPy array of fp32 on its way to HTTP."""

    data: Any


@dataclass(slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    """probs: one per class."""

    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    score: float


Output = TypeVar("Output")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Output]):
    """The result of one pooling request.

    late_chunking: vLLM's, always None. metrics: when it arrived, was admitted and ended.
    """

    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
    error: str | None = None
    late_chunking: Any = None
    metrics: RequestStateStats | None = None


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    """A text's vector."""


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    """A text's probability of each class."""


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    """How well a pair of texts fits together."""


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValidationError(
            f"{name} must be an integer of at least 1, got {value!r}", parameter=name
        )
