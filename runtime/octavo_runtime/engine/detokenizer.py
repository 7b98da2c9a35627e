"""Tokens to text as they come, and stop strings on that text."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo_protocol.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# A character spans a few tokens at most; longer runs that end in U+FFFD are invalid bytes.
_MAX_PENDING_TOKENS = 64
_MAX_CHARACTER_BYTES = 4


class IncrementalDetokenizer:
    """Decodes a growing list of tokens; the pieces together equal one decode of the whole.

        token_ids  [ ... | prefix ......... | pending ..... ]
                         prefix_offset      read_offset

    The text of `pending` is what the window from prefix_offset decodes to beyond the prefix's own
    text: a decoder may treat the first token of a text differently, and a character may need
    several tokens. While the window ends in U+FFFD, the last character may be unfinished: wait.

    visible_special_ids: tokens that show even where special tokens are skipped.
    spaces_between_special_tokens: False: nothing stands between two special tokens in a row.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        visible_special_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._visible = visible_special_ids if skip_special_tokens else frozenset()
        self._is_tight = not (skip_special_tokens or spaces_between_special_tokens)
        self._token_ids: list[int] = []
        self._prefix_offset = 0
        self._read_offset = 0

    def append(self, token_ids: Sequence[int]) -> str:
        """The text that is now certain."""
        text = ""
        for token_id in token_ids:
            if self._is_verbatim(token_id):
                text += self._append_verbatim(token_id)
            else:
                self._token_ids.append(token_id)
                text += self._advance(is_last=False)
        return text

    def flush(self) -> str:
        """What was held back for an unfinished character. Nothing may be appended after it."""
        return self._advance(is_last=True)

    def _is_verbatim(self, token_id: int) -> bool:
        """The token's text is its own, whatever the decoder makes of it among others."""
        if token_id in self._visible:
            return True
        special = self._tokenizer.special_token_ids
        return (
            self._is_tight
            and token_id in special
            and bool(self._token_ids)
            and self._token_ids[-1] in special
        )

    def _append_verbatim(self, token_id: int) -> str:
        """Ends what is pending. The prefix keeps the tokens before, as context of what follows."""
        text = ""
        if self._read_offset < len(self._token_ids):
            text = self._advance(is_last=True)
            if text.endswith(REPLACEMENT):  # bytes that what follows must not complete
                self._prefix_offset = self._read_offset
        self._token_ids.append(token_id)
        self._read_offset = len(self._token_ids)
        return text + self._tokenizer.token_text(token_id)

    def _advance(self, *, is_last: bool) -> str:
        prefix = self._decode(self._token_ids[self._prefix_offset : self._read_offset])
        window = self._decode(self._token_ids[self._prefix_offset :])
        num_pending = len(self._token_ids) - self._read_offset
        end = len(self._token_ids)
        if not is_last and len(window) <= len(prefix):
            return ""
        if not is_last and window.endswith(REPLACEMENT):
            if num_pending < _MAX_PENDING_TOKENS:
                return ""
            end = self._certain_end(window)
            window = self._decode(self._token_ids[self._prefix_offset : end])
        self._prefix_offset = self._read_offset
        self._read_offset = end
        return window[len(prefix) :]

    def _certain_end(self, window: str) -> int:
        """Where invalid bytes may be cut: the tokens on either side decode alike alone.

        The last tokens stay pending, since they may begin a character.
        """
        start = self._prefix_offset
        for end in range(len(self._token_ids) - _MAX_CHARACTER_BYTES, self._read_offset, -1):
            head, tail = self._token_ids[start:end], self._token_ids[end:]
            if self._decode(head) + self._decode(tail) == window:
                return end
        return len(self._token_ids)

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


@dataclass(frozen=True, slots=True)
class StopMatch:
    """`string` ended the text, which is to be cut at `cut`."""

    string: str
    cut: int


class StopStrings:
    """Finds the stop string that completes first; also says how much text may be shown already.

    A match may begin in text that came earlier, so while more can come, the last
    `len(longest) - 1` characters are held back: they may turn out to be the start of a match.
    """

    def __init__(self, strings: Sequence[str], *, include: bool) -> None:
        self._strings = tuple(strings)
        self._include = include
        self._longest = max((len(string) for string in strings), default=0)

    def find(self, text: str, num_new_chars: int) -> StopMatch | None:
        """A match that completes within the last `num_new_chars` characters of `text`."""
        best: tuple[int, int, str] | None = None
        for string in self._strings:
            first = max(0, len(text) - num_new_chars - len(string) + 1)
            start = text.find(string, first)
            if start >= 0 and (best is None or (start + len(string), start) < best[:2]):
                best = (start + len(string), start, string)
        if best is None:
            return None
        end, start, string = best
        return StopMatch(string, end if self._include else start)

    def num_safe_chars(self, text: str) -> int:
        """Leading characters of `text` that no later match can take back."""
        if self._include or self._longest == 0:
            return len(text)
        return max(0, len(text) - self._longest + 1)
