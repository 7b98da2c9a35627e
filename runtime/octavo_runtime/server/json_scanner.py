"""Where a JSON value ends, found while its text still arrives.

Knows only what that question needs: strings with escapes, and how deep brackets are nested. Each
character is looked at once, by regular expressions that jump from bracket to bracket.
"""

import json
import re
from typing import ClassVar

_STRING_STOPS = {'"': re.compile(r'["\\]'), "'": re.compile(r"['\\]")}


class JsonScanner:
    """Scans one object, array or string, fed piece by piece; its first character opens it.

    done: the value has ended. broken: it ended at a character that no JSON has there, which does
    not belong to it.
    """

    # Outside strings: what opens, closes, or cannot be part of JSON at all.
    structure: ClassVar = re.compile(r'["{}\[\]]|[^\s\w:,.+\-]', re.ASCII)
    quotes: ClassVar[str] = '"'
    opening: ClassVar[str] = "{["
    closing: ClassVar[str] = "}]"

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def scan(self, text: str, at: int) -> int:
        """Index behind the last character of `text`, from `at` on, that belongs to the value."""
        while at < len(text) and not self.done:
            at = self._scan_string(text, at) if self._quote else self._scan_structure(text, at)
        return at

    def _scan_string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        stop = _STRING_STOPS[self._quote].search(text, at)
        if stop is None:
            return len(text)
        if stop.group() == "\\":
            self._escaped = True
        else:
            self._quote = ""
            self.done = self._depth == 0
        return stop.end()

    def _scan_structure(self, text: str, at: int) -> int:
        stop = self.structure.search(text, at)
        if stop is None:
            return len(text)
        character = stop.group()
        if character in self.quotes:
            self._quote = character
        elif character in self.opening:
            self._depth += 1
        elif character in self.closing:
            self._depth -= 1
            self.done = self._depth == 0
        else:
            self.done = self.broken = True
            return stop.start()
        return stop.end()


class PythonScanner(JsonScanner):
    """Scans a parenthesised list of Python literals."""

    structure = re.compile(r"""["'(){}\[\]]""")
    quotes = "\"'"
    opening = "({["
    closing = ")}]"


def parse_json(text: str) -> object:
    """The value that `text` writes; ValueError where it is not JSON or nested absurdly deep."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def json_text(value: object) -> str:
    """`value` as JSON that can be sent as UTF-8: lone surrogates stay escaped.

    Raises ValueError for what JSON cannot say (infinities, values nested absurdly deep).
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return text if is_sendable(text) else json.dumps(value)


def is_sendable(text: str) -> bool:
    """Whether UTF-8 can write `text`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
