"""POST /v2/embed, Cohere's API: the request and its answer. /v2/rerank is that of `scoring`."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from pydantic import Field, model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.pooling import PoolingRequest, check_count
from octavo_protocol.openai.scoring import ScoreItem
from octavo_protocol.sampling_params import MAX_INT

EmbeddingType = Literal["float", "binary", "ubinary", "base64"]
InputType = Literal["search_document", "search_query", "classification", "clustering"]
# What models call the prompts that these inputs begin with.
_PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage"),
}
_SIDES: Mapping[str, Literal["left", "right"]] = {"START": "left", "END": "right"}


class EmbedRequest(PoolingRequest):
    """Body of POST /v2/embed. input_type: the prompt that the model has for it, if any, is put
    before each text. truncate: the end that is cut off a text longer than `max_tokens` or than the
    model takes; NONE: it is refused.
    """

    texts: List[str] | None = None
    inputs: List[ScoreItem] | None = None
    images: None = None
    input_type: InputType | None = None
    output_dimension: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    embedding_types: Annotated[List[EmbeddingType], Field(max_length=4)] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None

    @model_validator(mode="after")
    def _check_texts(self) -> "EmbedRequest":
        if (self.texts is None) == (self.inputs is None):
            raise ValueError("give either texts or inputs")
        name = "texts" if self.inputs is None else "inputs"
        count = len(self.given())
        if not count:
            raise ValidationError(f"{name} cannot be empty", parameter=name)
        check_count(count, name)
        return self

    def given(self) -> list[str]:
        """The texts. Raises `ValidationError` for inputs that are no text."""
        if self.texts is not None:
            return self.texts
        return [each.as_text() for each in self.inputs or ()]

    def prompt(self, prompts: Mapping[str, str]) -> str:
        """What texts begin with, of a model's `prompts`."""
        kind = self.input_type or ""
        names = _PROMPT_NAMES.get(kind, (kind,))
        return next((prompts[name] for name in names if name in prompts), "")

    @property
    def kinds(self) -> list[EmbeddingType]:
        """Types of the vectors to answer with."""
        return self.embedding_types or ["float"]

    @property
    def side(self) -> Literal["left", "right"] | None:
        """The end that is cut off; None: neither."""
        return _SIDES.get(self.truncate)


class BilledUnits(msgspec.Struct):
    input_tokens: int


class ApiVersion(msgspec.Struct, frozen=True):
    version: str = "2"


class Meta(msgspec.Struct):
    billed_units: BilledUnits
    api_version: ApiVersion = ApiVersion()


class EmbeddingsByType(msgspec.Struct, omit_defaults=True, rename={"float_": "float"}):
    """One list for each type that was asked for."""

    float_: list[list[float]] | None = None
    binary: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class EmbedAnswer(msgspec.Struct):
    id: str
    embeddings: EmbeddingsByType
    texts: list[str]
    meta: Meta
    response_type: str = "embeddings_by_type"
