"""Reads a model's text by generators that wait wherever it has been cut.

A parser is then written as if the whole text were there: `yield from reader.spaces()`. Every step
consumes what it has seen, so that work is linear in the length, and decides by the text alone, so
that cuts never change a result.
"""

import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

from octavo_runtime.server.json_scanner import JsonScanner, is_sendable, parse_json

T = TypeVar("T")
Steps = Generator[None, None, T]
Sink = Callable[[str], object]

SPACES = " \t\r\n"
_SPACES = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[\w.+\-]*", re.ASCII)


class EndOfTextError(Exception):
    """A step wanted more text and there is no more."""


class TextReader:
    """Text that arrives in pieces. Each step yields while it waits and raises EndOfTextError.

    Between `mark()` and `forget()` what is consumed is remembered, for `recall()`.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._marked: list[str] | None = None

    def append(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        self._ended = True

    def rest(self) -> str:
        """Consume what has arrived."""
        return self._take(len(self._text))

    def mark(self) -> None:
        self._marked = []

    def forget(self) -> None:
        self._marked = None

    def recall(self) -> str:
        """What was consumed since the mark, which is gone then."""
        marked, self._marked = self._marked or [], None
        return "".join(marked)

    def peek(self) -> Steps[str]:
        """The next character, not consumed."""
        while self._at == len(self._text):
            yield from self._wait()
        return self._text[self._at]

    def literal(self, *literals: str) -> Steps[str | None]:
        """Consume the one of `literals` that comes next; None: none does. No prefixes of others."""
        while True:
            for literal in literals:
                if self._text.startswith(literal, self._at):
                    return self._take(self._at + len(literal))
            here = self._text[self._at : self._at + max(map(len, literals))]
            if not any(literal.startswith(here) for literal in literals):
                return None
            yield from self._wait()

    def word(self, pattern: re.Pattern[str]) -> Steps[str]:
        """Consume the characters of a class: `pattern` is `[...]*`."""
        parts = []
        while True:
            match = pattern.match(self._text, self._at)
            parts.append(self._take(match.end() if match else self._at))
            if self._at < len(self._text):
                return "".join(parts)
            yield from self._wait()

    def spaces(self) -> Steps[str]:
        return (yield from self.word(_SPACES))

    def until(self, markers: Sequence[str], sink: Sink) -> Steps[str]:
        """Pass text to `sink` until one of `markers` comes; returns it, consumed.

        What may be the beginning of a marker is held back. The mark is set before the marker. No
        marker may be part of another.
        """
        pattern = _any_of(tuple(markers))
        while True:
            match = pattern.search(self._text, self._at)
            if match:
                sink(self._take(match.start()))
                self.mark()
                return self._take(match.end())
            sink(self._take(len(self._text) - self._begun(markers)))
            yield from self._wait()

    def forward(self, sink: Sink) -> Steps[None]:
        """Pass all text to `sink`, to the end."""
        while True:
            sink(self.rest())
            yield from self._wait()

    def json(self, sink: Sink) -> Steps[bool]:
        """Pass the JSON value that comes next to `sink` as it arrives; False: none, or broken."""
        if (yield from self.peek()) not in '{["':
            scalar = yield from self.word(_SCALAR)
            sink(scalar)
            return bool(scalar)
        return (yield from self.scan(JsonScanner(), sink))

    def scan(self, scanner: JsonScanner, sink: Sink) -> Steps[bool]:
        """Pass what `scanner` covers to `sink` as it arrives; False: it is broken."""
        while True:
            sink(self._take(scanner.scan(self._text, self._at)))
            if scanner.done:
                return not scanner.broken
            yield from self._wait()

    def string(self) -> Steps[str | None]:
        """Consume a JSON string; returns its value, None where there is no (valid) string."""
        if (yield from self.peek()) != '"':
            return None
        parts: list[str] = []
        yield from self.json(parts.append)
        try:
            value = parse_json("".join(parts))
        except ValueError:
            return None
        return value if isinstance(value, str) and is_sendable(value) else None

    def _begun(self, markers: Sequence[str]) -> int:
        """Characters at the end of the text that begin a marker."""
        unread = self._text[max(self._at, len(self._text) - max(map(len, markers)) + 1) :]
        for size in range(len(unread), 0, -1):
            if any(marker.startswith(unread[-size:]) for marker in markers):
                return size
        return 0

    def _take(self, end: int) -> str:
        taken = self._text[self._at : end]
        self._at = end
        if self._marked is not None and taken:
            self._marked.append(taken)
        return taken

    def _wait(self) -> Steps[None]:
        if self._ended:
            raise EndOfTextError
        yield


@lru_cache(maxsize=256)
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, markers)))
