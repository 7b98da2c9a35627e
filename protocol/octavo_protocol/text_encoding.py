"""Texts and pairs of texts as the prompts of pooling models, truncated as transformers does it.

What is cut off is text: special tokens around it ([CLS] … [SEP]) stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers

from octavo_protocol.errors import ValidationError
from octavo_protocol.tokenizer import Tokenizer

TruncationSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Truncation:
    """max_tokens: that the whole prompt may have, special tokens included; None: any number.
    side: the end of the text that is cut off.
    """

    max_tokens: int | None = None
    side: TruncationSide = "right"

    def tokens(self, token_ids: list[int]) -> list[int]:
        """`token_ids` without what is too many, whatever they are."""
        if self.max_tokens is None or len(token_ids) <= self.max_tokens:
            return token_ids
        return (
            token_ids[-self.max_tokens :] if self.side == "left" else token_ids[: self.max_tokens]
        )


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """token_type_ids: which text of a pair each token belongs to; None: there is one text, or the
    tokenizer makes no difference.
    """

    token_ids: list[int]
    token_type_ids: list[int] | None = None


NO_TRUNCATION = Truncation()


def encode_texts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    truncation: Truncation = NO_TRUNCATION,
    *,
    add_special_tokens: bool = True,
) -> list[list[int]]:
    """The token ids of each text. Raises `ValidationError` for what is not text, and for a limit
    that has no room for the special tokens.
    """
    backend = tokenizer.backend
    try:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    except TypeError:
        raise _not_unicode() from None
    limit = truncation.max_tokens
    token_ids = [encoding.ids for encoding in encodings]
    if limit is None:
        return token_ids
    return [
        ids
        if len(ids) <= limit
        else _shortened(backend, text, truncation, add_special_tokens=add_special_tokens)
        for text, ids in zip(texts, token_ids, strict=True)
    ]


def encode_pair(
    tokenizer: Tokenizer,
    first: str,
    second: str,
    truncation: Truncation = NO_TRUNCATION,
    *,
    max_first: int | None = None,
    max_second: int | None = None,
) -> EncodedPrompt:
    """Two texts as a cross-encoder reads them. Where both are too long together, the longer one
    is cut first. max_first, max_second: tokens of each text alone, without special tokens.

    Raises `ValidationError` for what is not text, and for a limit without room for the special
    tokens.
    """
    backend = tokenizer.backend
    try:
        [one, other] = (backend.encode(text, add_special_tokens=False) for text in (first, second))
    except TypeError:
        raise _not_unicode() from None
    keep_one, keep_other = _kept(
        len(one.ids) if max_first is None else min(len(one.ids), max_first),
        len(other.ids) if max_second is None else min(len(other.ids), max_second),
        _room(backend, truncation.max_tokens, is_pair=True),
    )
    one.truncate(keep_one, direction=truncation.side)
    other.truncate(keep_other, direction=truncation.side)
    merged = backend.post_process(one, other)
    return EncodedPrompt(merged.ids, merged.type_ids if any(merged.type_ids) else None)


def _shortened(
    backend: tokenizers.Tokenizer, text: str, truncation: Truncation, *, add_special_tokens: bool
) -> list[int]:
    limit = truncation.max_tokens
    room = _room(backend, limit) if add_special_tokens else limit
    assert room is not None
    encoding = backend.encode(text, add_special_tokens=False)
    encoding.truncate(room, direction=truncation.side)
    return backend.post_process(encoding, add_special_tokens=add_special_tokens).ids


def _room(backend: tokenizers.Tokenizer, limit: int | None, *, is_pair: bool = False) -> int | None:
    """Tokens that text may have within `limit`."""
    if limit is None:
        return None
    num_special = backend.num_special_tokens_to_add(is_pair)
    if limit < num_special:
        raise ValidationError(
            f"truncate_prompt_tokens must be at least {num_special}, the number of special tokens "
            f"that this model's prompts have, got {limit}",
            parameter="truncate_prompt_tokens",
        )
    return limit - num_special


def _kept(num_first: int, num_second: int, room: int | None) -> tuple[int, int]:
    """How many tokens of each text stay; the longer one loses its own until both are alike."""
    if room is None or num_first + num_second <= room:
        return num_first, num_second
    if num_first > num_second:
        kept = min(num_second, room // 2)
        return room - kept, kept
    kept = min(num_first, room // 2)
    return kept, room - kept


def _not_unicode() -> ValidationError:
    return ValidationError("the prompt has characters that are not valid Unicode")
