"""Where a text may be cut so that its pieces have the tokens that they have in the whole.

A tokenizer first cuts the text at its added tokens (`<|im_end|>`), then works on what is between
them, each piece for itself. So the tokens between two added tokens depend on nothing outside, if it
is certain that these are found there in any text around them. That holds for a token that

- is looked for in the text as it is (`normalized` is false) and takes no space beside it
  (`rstrip`; it neither begins nor ends with space itself),
- shares no end with another one's beginning, or its own, and is part of none: then every place
  where it stands in a text is a place where it is found.

Tokenizers that draw at random (dropout), or whose added tokens look at the characters around them
(`single_word`), are not cut. Some put a space before what the text begins with: so a piece is
tokenized behind the separator that is before it, never as if the text began there.

Long texts without added tokens are cut between words, where the tokenizer is one of those (GPT-2,
Llama 3, Qwen 2) whose patterns never reach from a letter over the space behind it: see `_is_wordy`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import tokenizers

# Shorter pieces are joined with the next: keeping them costs more than tokenizing them.
_MIN_CHARS = 256
_WORDS_CHARS = 2048
_WORD_END = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
_KNOWN_PATTERNS = (
    # Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen 2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a text. separator: the added token before it; "" at the beginning."""

    separator: str
    text: str


class Separators:
    """Where texts are cut: after added tokens and between words; nowhere if it is not exact."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        found = _separators(backend)
        self._is_wordy = _is_wordy(backend)
        self._pattern = re.compile(_pattern(found)) if found else None

    def segments(self, text: str) -> Sequence[Segment]:
        """`text` in pieces. The beginnings of two texts are cut alike as far as they agree."""
        segments = self._segments(text)
        if self._is_wordy:
            return [piece for segment in segments for piece in _between_words(segment)]
        return list(segments)

    def _segments(self, text: str) -> Iterator[Segment]:
        separator, start = "", 0
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            end = match.end()
            if end - start >= _MIN_CHARS:
                yield Segment(separator, text[start:end])
                separator, start = match.group(), end
        if start < len(text):
            yield Segment(separator, text[start:])


def _between_words(segment: Segment) -> Iterator[Segment]:
    """`segment` in pieces of `_WORDS_CHARS` and the rest of a word. All but the first are alike
    wherever they stand, as if the text began there.
    """
    separator, text, start = segment.separator, segment.text, 0
    while match := _WORD_END.search(text, start + _WORDS_CHARS):
        yield Segment(separator, text[start : match.start()])
        separator, start = "", match.start()
    yield Segment(separator, text[start:])


def _is_wordy(backend: tokenizers.Tokenizer) -> bool:
    """Whether a cut before a space between two Latin letters changes no token.

    Nothing normalizes but NFC (which joins neither letter nor space with what is behind them here),
    the patterns are known, no space is put before a text, and no added token has or takes one.
    """
    added = list(backend.get_added_tokens_decoder().values())
    normalizer = backend.normalizer
    if normalizer is not None and json.loads(normalizer.__getstate__())["type"] != "NFC":
        return False
    if getattr(backend.model, "dropout", None):
        return False
    if any(each.single_word or each.rstrip or " " in each.content for each in added):
        return False
    if backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    steps = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    steps = [step for step in steps if step["type"] != "Digits"]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if steps[-1]["use_regex"]:
        return len(steps) == 1
    return len(steps) == 2 and any(steps[0] == _split(pattern) for pattern in _KNOWN_PATTERNS)


def _split(pattern: str) -> dict[str, object]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _separators(backend: tokenizers.Tokenizer) -> list[str]:
    added = list(backend.get_added_tokens_decoder().values())
    if getattr(backend.model, "dropout", None) or any(token.single_word for token in added):
        return []
    contents = [token.content for token in added if not token.normalized]
    joined = "\0".join(contents)
    ends = {content[at:] for content in contents for at in range(len(content))}
    return [
        token.content
        for token in added
        if not (token.normalized or token.rstrip)
        and token.content.strip() == token.content != ""
        and joined.count(token.content) == 1
        and not any(token.content[:size] in ends for size in range(1, len(token.content)))
    ]


def _pattern(words: Iterable[str]) -> str:
    """A regular expression for `words`, none of which begins another: their tree, since a search
    for thousands of alternatives one by one would take seconds in texts full of "<".
    """
    rests: dict[str, list[str]] = {}
    for word in words:
        rests.setdefault(word[:1], []).append(word[1:])
    if "" in rests:
        return ""
    branches = [re.escape(first) + _pattern(rest) for first, rest in rests.items()]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
