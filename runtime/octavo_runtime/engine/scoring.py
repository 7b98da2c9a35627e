"""Scores of pairs of texts: how each kind of model gets its prompts, and what its answers mean.

    cross-encoder     one prompt per pair, one class: its value is the score
    bi-encoder        one vector per text: their cosine
    late interaction  one vector per token: for each token of the query its best match, summed

`LLM.score` and the HTTP routes share these functions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo_protocol.errors import ValidationError
from octavo_protocol.text_encoding import (
    NO_TRUNCATION,
    EncodedPrompt,
    Truncation,
    encode_pair,
)
from octavo_protocol.tokenizer import Tokenizer

Vectors = NDArray[np.float32]
# A template for pairs reads messages of these roles.
_PAIR_ROLES = re.compile(r"""["']query["'].*["']document["']""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How pairs become prompts.

    chat_template: renders the pair as messages of the roles query and document; None: the texts
    are joined as the tokenizer joins pairs. template_kwargs: variables of the template, like
    `instruction`. truncation: of the prompt. max_query_tokens, max_document_tokens: of each text;
    None: no limit.
    """

    chat_template: str | None = None
    template_kwargs: Mapping[str, Any] | None = None
    truncation: Truncation = NO_TRUNCATION
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None


def pair_template(tokenizer: Tokenizer, given: str | None) -> str | None:
    """The template of pairs: the given one, or the model's own if it is one; None: neither."""
    own = tokenizer.bundle.chat_template
    return given or (own if own and _PAIR_ROLES.search(own) else None)


def pair_prompt(
    tokenizer: Tokenizer, query: str, document: str, options: PairOptions
) -> EncodedPrompt:
    """A pair as a cross-encoder reads it. Raises `ValidationError` for what is no text."""
    if options.chat_template is None:
        return encode_pair(
            tokenizer,
            query,
            document,
            options.truncation,
            max_first=options.max_query_tokens,
            max_second=options.max_document_tokens,
        )
    texts = (
        ("query", query, options.max_query_tokens),
        ("document", document, options.max_document_tokens),
    )
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": _cut(tokenizer, text, limit)} for role, text, limit in texts],
        chat_template=options.chat_template,
        add_generation_prompt=False,
        **(options.template_kwargs or {}),
    )
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return EncodedPrompt(options.truncation.tokens(token_ids))


def pairs_of(num_queries: int, num_documents: int) -> list[tuple[int, int]]:
    """Which query meets which document: 1 and 1, 1 and N, or N and N, one to one.

    Raises `ValidationError` for other numbers.
    """
    if num_queries == 0 or num_documents == 0:
        raise ValidationError("there must be at least one text on either side", parameter="data_1")
    if num_queries not in (1, num_documents):
        raise ValidationError(
            f"{num_queries} texts cannot be scored against {num_documents}: give one against any "
            "number, or as many on either side",
            parameter="data_1",
        )
    return [(i if num_queries > 1 else 0, i) for i in range(num_documents)]


def cosine(first: Vectors, second: Vectors) -> float:
    """Of two vectors [size]; 0 where one of them is 0."""
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.dot(first, second)) / norms if norms else 0.0


def max_sim(query: Vectors, document: Vectors) -> float:
    """Sum over the query's tokens of the largest dot product with one of the document's.

    query, document: [num_tokens, size]. Source: Khattab and Zaharia 2020, "ColBERT", §3.2.
    """
    return float((query @ document.T).max(axis=1).sum())


def pair_score(scoring: str | None, first: Vectors, second: Vectors) -> float:
    """The score of two embeddings. scoring: `PoolingInfo.scoring`, not of a cross-encoder."""
    return max_sim(first, second) if scoring == "late-interaction" else cosine(first, second)


def refuse_unscored(scoring: str | None, tasks: Sequence[str], num_labels: int) -> None:
    """Raises `ValidationError` where the model's answers are no scores."""
    if scoring is None:
        why = f"it has {num_labels} classes" if num_labels else f"its tasks are {', '.join(tasks)}"
        raise ValidationError(
            f"this model cannot score pairs: {why}. A model that embeds, or a classifier with one "
            "class, can",
            parameter="model",
        )


def _cut(tokenizer: Tokenizer, text: str, max_tokens: int | None) -> str:
    if max_tokens is None:
        return text
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return text if len(token_ids) <= max_tokens else tokenizer.decode(token_ids[:max_tokens])
