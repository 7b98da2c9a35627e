"""POST /score and /rerank: the requests."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from octavo_protocol.errors import ValidationError
from octavo_protocol.openai.lists import List
from octavo_protocol.openai.messages import ContentPart
from octavo_protocol.openai.pooling import PoolingRequest, check_count
from octavo_protocol.openai.strict import Strict
from octavo_protocol.sampling_params import MAX_INT

# Names of the two sides of a score request: one pair of them is given.
_SPELLINGS = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)
_SIDES = tuple(dict.fromkeys(name for names in _SPELLINGS for name in names))
_ALLOWED = "; ".join(f"{first} and {second}" for first, second in _SPELLINGS)


class ScoreItem(Strict):
    """A text, or its parts; `{"text": …}` is how Jina's API writes one."""

    text: str | None = None
    content: str | List[ContentPart] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ScoreItem":
        if (self.text is None) == (self.content is None):
            raise ValueError("give either text or content")
        return self

    def as_text(self) -> str:
        """Raises `ValidationError` for a part that is not text."""
        if self.text is not None:
            return self.text
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.as_text() for part in self.content or ())


Item = str | ScoreItem
Tokens = Annotated[int, Field(ge=0, le=MAX_INT)]


class PairRequest(PoolingRequest):
    """Fields that /score and /rerank share.

    max_tokens_per_query, max_tokens_per_doc: longer texts are cut; 0: they are not. instruction:
    what makes a document fit, for templates that read it.
    """

    max_tokens_per_query: Tokens = 0
    max_tokens_per_doc: Tokens = 0
    instruction: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreRequest(PairRequest):
    """Body of POST /score. One query goes with every document, else they go in pairs."""

    queries: Item | List[Item] | None = None
    documents: Item | List[Item] | None = None
    items: Item | List[Item] | None = None
    data_1: Item | List[Item] | None = None
    data_2: Item | List[Item] | None = None
    text_1: Item | List[Item] | None = None
    text_2: Item | List[Item] | None = None

    @model_validator(mode="after")
    def _check_sides(self) -> "ScoreRequest":
        given = tuple(name for name in _SIDES if getattr(self, name) is not None)
        if given not in _SPELLINGS:
            raise ValueError(f"a score needs two sides: {_ALLOWED}")
        queries, documents = self.sides()
        if len(queries) not in (1, len(documents)):
            raise ValidationError(
                f"{given[0]} must be one text or as many as {given[1]}: got {len(queries)} and "
                f"{len(documents)}",
                parameter=given[0],
            )
        return self

    def sides(self) -> tuple[list[str], list[str]]:
        """Queries and documents. Raises `ValidationError` where one side is empty."""
        [first, second] = (name for name in _SIDES if getattr(self, name) is not None)
        return _texts(first, getattr(self, first)), _texts(second, getattr(self, second))


class RerankRequest(PairRequest):
    """Body of POST /rerank. top_n: results to answer with; 0: all."""

    query: Item
    documents: List[Item]
    top_n: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    return_documents: bool = True

    @model_validator(mode="after")
    def _check_sides(self) -> "RerankRequest":
        self.sides()
        return self

    def sides(self) -> tuple[list[str], list[str]]:
        """The query and the documents. Raises `ValidationError` without documents."""
        return _texts("query", self.query), _texts("documents", self.documents)


def _texts(name: str, given: Item | list[Item]) -> list[str]:
    items = given if isinstance(given, list) else [given]
    if not items:
        raise ValidationError(f"{name} cannot be empty", parameter=name)
    check_count(len(items), name)
    return [item if isinstance(item, str) else item.as_text() for item in items]
