"""Builds one llguidance grammar in its Lark syntax, with other grammars beside it.

Two things make literals delicate. A text may name special tokens of the tokenizer (`<tool_call>`):
the model writes such a token, not its characters, so the literal must ask for the token. And free
text before a literal must end where the literal first occurs, or it would swallow it: free text
and literal are one lexeme that matches as little as it can.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

ANY_TEXT = "/(?s:.*)/"
Piece = str | int


class LarkBuilder:
    """Collects rules, terminals and nested grammars. `special_tokens`: text → token id."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special_tokens = special_tokens
        self._token_texts = {token_id: text for text, token_id in special_tokens.items()}
        self._lines: list[str] = []
        self._nested: list[dict[str, Any]] = []

    def rule(self, body: str, *, lazy: bool = False) -> str:
        """A rule's name. lazy: a terminal that matches as few characters as it can."""
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def terminal(self, body: str) -> str:
        name = f"T{len(self._lines)}"
        self._lines.append(f"{name}: {body}")
        return name

    def nested(self, grammar: Mapping[str, Any]) -> str:
        """A reference to another grammar: {"json_schema": ...} or {"lark_grammar": ...}."""
        name = f"g{len(self._nested)}"
        self._nested.append({"name": name, **grammar})
        return f"@{name}"

    def literal(self, text: str) -> str:
        """Exactly `text`, its special tokens as tokens. The empty text: nothing."""
        return " ".join(_symbol(piece) for piece in self.pieces(text))

    def regex(self, pattern: str, then: str) -> str:
        """`pattern` and then the text `then`, as one lexeme: else the pattern might swallow it."""
        head, rest = self._split(then)
        return " ".join([self.terminal(f"{regex_literal(pattern)} {quote(head)}"), *rest])

    def text_until(self, stops: Sequence[str]) -> dict[str, str]:
        """For each stop: free text up to the first occurrence of any stop, and that stop.

        Stops are not empty.
        """
        escaped = "|".join(escape_regex(stop) for stop in stops)
        # Spelled out, a special token is excluded too: readers of the text could not tell it apart.
        text = self.terminal(f"{ANY_TEXT} & ~/(?s:.*)({escaped})(?s:.*)/")
        found = {}
        for stop in stops:
            head, rest = self._split(stop)
            if not head:
                found[stop] = " ".join([text, *rest])
            elif not rest:
                found[stop] = self.rule(f"{text} {quote(head)}", lazy=True)
            else:  # a special token follows, which says by itself where the text has ended
                found[stop] = " ".join([self.terminal(f"{text} {quote(head)}"), *rest])
        return found

    def text_to_the_end(self, excluded: Sequence[str] = ()) -> str:
        """Free text, also none, without any of the excluded texts."""
        if not excluded:
            return self.terminal(ANY_TEXT)
        escaped = "|".join(escape_regex(text) for text in excluded)
        return self.terminal(f"{ANY_TEXT} & ~/(?s:.*)({escaped})(?s:.*)/")

    def pieces(self, text: str) -> list[Piece]:
        """`text` cut into plain texts and ids of special tokens, in order."""
        pieces: list[Piece] = []
        while text:
            place, token = min(
                ((text.find(token), token) for token in self._special_tokens if token in text),
                key=lambda found: (found[0], -len(found[1])),
                default=(len(text), ""),
            )
            if place > 0:
                pieces.append(text[:place])
            if token:
                pieces.append(self._special_tokens[token])
            text = text[place + len(token) :]
        return pieces

    def cut(self, text: str, length: int) -> int:
        """The least length from `length` on at which a cut of `text` cuts no special token."""
        position = 0
        for piece in self.pieces(text):
            if isinstance(piece, str):
                position += len(piece)
                if length <= position:
                    return length
            else:
                position += len(self._token_texts[piece])
                if length <= position:
                    return position
        return position

    def build(self, start: str) -> str:
        """The whole grammar as JSON, as llguidance takes it."""
        lark = "\n".join([f"start: {start}", *self._lines])
        return json.dumps({"grammars": [{"lark_grammar": lark}, *self._nested]})

    def _split(self, text: str) -> tuple[str, list[str]]:
        """Plain text up to the first special token, and what comes then, as Lark symbols."""
        pieces = self.pieces(text)
        head = pieces[0] if pieces and isinstance(pieces[0], str) else ""
        return head, [_symbol(piece) for piece in pieces[1 if head else 0 :]]


def quote(text: str) -> str:
    """A Lark string literal: JSON's, where the lexer also wants DEL escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def regex_literal(pattern: str) -> str:
    """A Lark regex literal: between slashes, on one line."""
    escaped = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            character += next(characters, "")
        elif character == "/":
            character = "\\/"
        escaped.append("\\n" if character == "\n" else character)
    return f"/{''.join(escaped)}/"


def escape_regex(text: str) -> str:
    """A pattern that matches exactly `text`, fit to stand between slashes on one line."""
    return "".join(
        character if character.isalnum() or character in " _" else f"\\x{{{ord(character):x}}}"
        for character in text
    )


def _symbol(piece: Piece) -> str:
    return quote(piece) if isinstance(piece, str) else f"<[{piece}]>"
