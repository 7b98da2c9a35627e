"""Texts to token ids, of which only the parts that are new are computed.

A text is cut at `Separators`; the ids of each segment are kept by a digest of it and of whether a
separator is before it (which one does not matter). So a conversation that grows costs its new
messages only, one that was edited the edited message, and a document that stands in many prompts is
tokenized once. The ids are those that the whole text has.

Whose text was tokenized before shows in the time that it takes: so what one cache salt keeps no
other one finds, as with cached blocks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.errors import ValidationError
from octavo_protocol.packed_ids import pack, unpack
from octavo_protocol.separators import Segment, Separators

# A text of fewer characters is tokenized as it is.
_MIN_CHARS = 512
_KEY_BYTES = 16
_MARKER = "a"  # any text: shows what is put around one


@dataclass(frozen=True, slots=True)
class Tokenization:
    """A text on its way to token ids. num_new_chars: how many must be tokenized for them;
    num_known_chars: of how many the ids are known.
    """

    encoder: "IncrementalEncoder"
    segments: Sequence[Segment]
    keys: Sequence[bytes]
    found: Sequence[bytes | None]
    num_new_chars: int
    num_known_chars: int
    is_framed: bool

    def packed(self) -> bytes:
        """The ids as `pack` writes them. Other threads run meanwhile."""
        return self.encoder.complete(self)

    def token_ids(self) -> list[int]:
        return unpack(self.packed())


class IncrementalEncoder:
    """Encodes with one tokenizer. Thread-safe.

    memo: of segments' ids; tokenizers with different `name`s may share it.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, memo: BoundedMemo[bytes], name: str = ""
    ) -> None:
        self._backend = backend
        self._memo = memo
        self._separators = Separators(backend)
        self._digest = hashlib.sha256(name.encode())
        self._frame = _frame(backend)

    def whole(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of `text`, of which nothing is kept. Raises `ValidationError` as `begin` does."""
        [token_ids] = self._encode([text], add_special_tokens=add_special_tokens)
        return token_ids

    def begin(self, text: str, *, add_special_tokens: bool, cache_salt: str = "") -> Tokenization:
        """Looks up what is known of `text`. Raises `ValidationError` for what is not Unicode."""
        is_whole = len(text) < _MIN_CHARS or (add_special_tokens and self._frame is None)
        segments = [] if is_whole else self._separators.segments(text)
        if len(segments) < 2:
            keys: list[bytes] = []
            segments = [Segment("", text)]
            found: list[bytes | None] = [None]
        else:
            salted = self._digest.copy()
            salted.update(f"{len(cache_salt)}:{cache_salt}".encode())
            keys = [_key(salted.copy(), segment) for segment in segments]
            found = [self._memo.get(key) for key in keys]
        num_new = sum(
            len(segment.text)
            for segment, known in zip(segments, found, strict=True)
            if known is None
        )
        num_known = len(text) - num_new
        return Tokenization(
            self, segments, keys, found, num_new, num_known, is_framed=add_special_tokens
        )

    def complete(self, begun: Tokenization) -> bytes:
        """The packed ids. Raises `ValidationError` for what is not Unicode."""
        if not begun.keys:
            [segment] = begun.segments
            return pack(self.whole(segment.text, add_special_tokens=begun.is_framed))
        parts = list(begun.found)
        missing = [index for index, part in enumerate(parts) if part is None]
        texts = [begun.segments[index].separator + begun.segments[index].text for index in missing]
        for index, token_ids in zip(missing, self._encode(texts), strict=True):
            part = pack(token_ids[1:] if begun.segments[index].separator else token_ids)
            self._memo.put(begun.keys[index], part, len(part))
            parts[index] = part
        before, after = self._frame if begun.is_framed and self._frame else (b"", b"")
        return b"".join([before, *filter(None, parts), after])

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        try:
            # Of the backend's calls only those for batches let other threads run.
            encodings = self._backend.encode_batch_fast(
                texts, add_special_tokens=add_special_tokens
            )
        except TypeError:  # lone surrogates ("\ud800" in JSON) are not text
            raise ValidationError("the prompt has characters that are not valid Unicode") from None
        return [encoding.ids for encoding in encodings]


def _key(digest: "hashlib._Hash", segment: Segment) -> bytes:
    try:
        digest.update((("1" if segment.separator else "0") + segment.text).encode())
    except UnicodeEncodeError:
        raise ValidationError("the prompt has characters that are not valid Unicode") from None
    return digest.digest()[:_KEY_BYTES]


def _frame(backend: tokenizers.Tokenizer) -> tuple[bytes, bytes] | None:
    """The packed ids that the tokenizer puts around a text; None where that is not certain."""
    bare = backend.encode(_MARKER, add_special_tokens=False).ids
    framed = backend.encode(_MARKER, add_special_tokens=True).ids
    places = [at for at in range(len(framed)) if bare and framed[at : at + len(bare)] == bare]
    if len(places) != 1:
        return None
    [at] = places
    return pack(framed[:at]), pack(framed[at + len(bare) :])
