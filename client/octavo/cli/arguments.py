"""The rules by which vLLM's users write flags, turned into the one plain form that typer reads.

`-` and `_` are the same in a flag's name; `--enable-x` and `--disable-x` are opposites, as are
`--x` and `--no-x`; several values may follow a flag that takes several; a JSON flag also takes one
key at a time (`--flag.key value`, `--flag.list+ item`). Everything here is pure.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo_protocol.errors import ValidationError

Kind = Literal["switch", "one", "many", "json"]
_NUMBER = re.compile(r"-\d+(\.\d+)?|-\.\d+|-inf")
_ABLE = re.compile(r"(--(?:no-)?)(enable|disable)(-.+)")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that a command knows.

    name: as `--max-model-len`. aliases: other spellings. negative: what turns a switch off.
    foreign: vLLM's, not the command's own; kept apart in `Plain.foreign`.
    """

    name: str
    kind: Kind = "one"
    aliases: tuple[str, ...] = ()
    negative: str | None = None
    foreign: bool = False


@dataclass(slots=True)
class Plain:
    """words: what typer reads. foreign: (flag, values) of flags that are vLLM's alone; a switch has
    the value "true" or "false".
    """

    words: list[str] = field(default_factory=list)
    foreign: list[tuple[str, list[str]]] = field(default_factory=list)


class Grammar:
    """The flags of one command, and how many words it takes beside them.

    word_flag: the flag that may stand for those words.
    """

    def __init__(
        self, flags: Iterable[Flag], *, num_words: int = 0, word_flag: str | None = None
    ) -> None:
        self._num_words = num_words
        self._word_flag = word_flag
        self._by_name: dict[str, tuple[Flag, bool]] = {}
        for flag in flags:
            for name in (flag.name, *flag.aliases):
                self._by_name.setdefault(name, (flag, True))
            if flag.kind == "switch":
                for name in _opposites(flag):
                    self._by_name.setdefault(name, (flag, False))
        for name, (flag, is_on) in list(self._by_name.items()):
            if flag.kind == "switch" and (twin := _twin(name)) is not None:
                self._by_name.setdefault(twin, (flag, not is_on))

    def plain(self, arguments: Sequence[str], settings: Sequence[str] = ()) -> Plain:
        """`arguments` in plain form, after those `settings` (of a file) that they leave open.

        Raises `ValidationError` for a flag that nobody knows, naming the nearest, and for a flag
        without its value.
        """
        names = {word.partition("=")[0] for word in (*arguments, *settings)}
        num_words = 0 if self._word_flag in names else self._num_words
        given, before = _Reader(self, num_words), _Reader(self, num_words)
        given.read(arguments)
        before.read(settings)
        return before.plain(given)

    @property
    def names(self) -> list[str]:
        """Every spelling of every flag."""
        return list(self._by_name)

    def find(self, name: str) -> tuple[Flag, bool] | None:
        """The flag that is spelled `name`, and whether this spelling turns it on."""
        return self._by_name.get(dashed(name)) or self._by_name.get(name)

    def unknown(self, name: str) -> ValidationError:
        """The error for a flag that nobody knows."""
        known = [each for each, (flag, _) in self._by_name.items() if each.startswith("--")]
        near = difflib.get_close_matches(dashed(name), known, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "; --help lists the flags"
        return ValidationError(f"there is no flag {name}{hint}", parameter=name)


class _Reader:
    """Walks over the words of one source of arguments and sorts them."""

    def __init__(self, grammar: Grammar, num_words: int) -> None:
        self._grammar = grammar
        self._num_words = num_words
        self._bare: list[str] = []
        self._values: dict[Flag, list[str]] = {}
        self._documents: dict[Flag, Any] = {}
        self._untouched: list[str] = []

    def read(self, arguments: Sequence[str]) -> None:
        words = list(arguments)
        while words:
            word = words.pop(0)
            if word == "--":
                self._untouched = words
                return
            if not word.startswith("-") or word == "-" or _NUMBER.fullmatch(word):
                self._bare.append(word)
                continue
            name, equals, attached = word.partition("=")
            if not equals and len(word) > 2 and self._is_short(word):
                name, equals, attached = word[:2], "=", word[2:]
            self._take(name, attached if equals else None, words)

    def plain(self, given: "_Reader") -> Plain:
        """These, without what `given` sets too, and then `given`."""
        result = Plain()
        for reader, skipped in ((self, given._all()), (given, set[Flag]())):
            for flag in [*reader._values, *reader._documents]:
                if flag in skipped and flag.kind != "json":
                    continue
                values = reader._values.get(flag, [])
                if flag in reader._documents:
                    if flag in skipped:
                        continue
                    base = self._documents.get(flag) if reader is given else None
                    values = [json.dumps(_merged(base, reader._documents[flag]))]
                if flag.foreign:
                    result.foreign.append((flag.name, values))
                else:
                    result.words += _spelled(flag, values)
        result.words += given._bare or self._bare
        if given._untouched:
            result.words += ["--", *given._untouched]
        return result

    def _all(self) -> set[Flag]:
        return {*self._values, *self._documents}

    def _is_short(self, word: str) -> bool:
        """A one-letter flag with its value behind it, as `-ofile`."""
        if word.startswith("--") or self._grammar.find(word) is not None:
            return False
        found = self._grammar.find(word[:2])
        return found is not None and found[0].kind == "one"

    def _take(self, name: str, attached: str | None, words: list[str]) -> None:
        found = self._grammar.find(name)
        path: list[str] = []
        if found is None and "." in name:
            stem, _, rest = name.partition(".")
            found, path = self._grammar.find(stem), rest.split(".")
            if found is not None and found[0].kind != "json":
                raise ValidationError(f"{stem} takes no keys; write {stem} VALUE", parameter=stem)
        is_list = found is None and name.endswith("+")
        if is_list:
            found = self._grammar.find(name[:-1])
        if found is None:
            raise self._grammar.unknown(name)
        flag, is_on = found
        match flag.kind:
            case "switch":
                self._values[flag] = [str(_switched(name, attached, is_on)).lower()]
            case "json":
                value = self._one(name, attached, words)
                self._set_json(flag, path, value, is_list)
            case "one":
                self._values[flag] = [self._one(name, attached, words)]
            case "many":
                self._values.setdefault(flag, []).append(self._one(name, attached, words))
                # Before the command has its own words, a bare word may be one of those.
                while len(self._bare) >= self._num_words and self._has_value(words):
                    self._values[flag].append(words.pop(0))

    def _one(self, name: str, attached: str | None, words: list[str]) -> str:
        if attached is not None:
            return attached
        if not words or (words[0].startswith("-") and not self._is_value(words[0])):
            raise ValidationError(f"{name} needs a value", parameter=name)
        return words.pop(0)

    def _has_value(self, words: list[str]) -> bool:
        return bool(words) and not words[0].startswith("-")

    def _is_value(self, word: str) -> bool:
        if word == "-" or _NUMBER.fullmatch(word):
            return True
        return not word.startswith("--") and self._grammar.find(word) is None

    def _set_json(self, flag: Flag, path: list[str], text: str, is_list: bool) -> None:
        if not path and not is_list:
            self._documents[flag] = _merged(self._documents.get(flag), _document(flag.name, text))
            return
        addition: Any = _scalar(text)
        keys = list(path)
        if keys and keys[-1].endswith("+"):
            keys[-1] = keys[-1].removesuffix("+")
            is_list = True
        if is_list:
            addition = _Appended([addition])
        for key in reversed(keys):
            addition = {key.replace("-", "_"): addition}
        self._documents[flag] = _merged(self._documents.get(flag), addition)


class _Appended(list[Any]):
    """A list that joins the one before it, instead of taking its place."""


def dashed(name: str) -> str:
    """`--max_model_len` as `--max-model-len`."""
    return name.replace("_", "-")


def _opposites(flag: Flag) -> list[str]:
    names = [flag.negative] if flag.negative else []
    long = (name for name in (flag.name, *flag.aliases) if name.startswith("--"))
    return [*names, *("--no-" + name.removeprefix("--") for name in long)]


def _twin(name: str) -> str | None:
    """`--disable-x` for `--enable-x`, and the other way round."""
    match = _ABLE.fullmatch(name)
    if match is None:
        return None
    start, verb, rest = match.groups()
    return start + ("disable" if verb == "enable" else "enable") + rest


def _switched(name: str, attached: str | None, is_on: bool) -> bool:
    if attached is None:
        return is_on
    truth = _TRUTHS.get(attached.lower())
    if truth is None:
        raise ValidationError(f"{name} is true or false, not {attached!r}", parameter=name)
    return truth == is_on


def _spelled(flag: Flag, values: list[str]) -> list[str]:
    if flag.kind != "switch":
        return [f"{flag.name}={value}" for value in values]
    if values == ["true"]:
        return [flag.name]
    return [flag.negative] if flag.negative else []


def _document(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValidationError(
            f"{name} needs JSON, as '{{\"key\": 1}}' (or {name}.key 1): {error}", parameter=name
        ) from error


def _scalar(text: str) -> Any:
    """JSON where it is some, else the text itself: `3`, `true`, `[1]`, `ngram`."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _merged(base: Any, addition: Any) -> Any:
    """`addition` over `base`: tables join key by key, `_Appended` ones lengthen a list, anything
    else takes the place of what was there.
    """
    if isinstance(addition, _Appended):
        if base is None or isinstance(base, list):
            return _Appended([*(base or ()), *addition])
        raise ValidationError(f"a flag that ends in + needs a list, but its value is {base!r}")
    if isinstance(base, Mapping) and isinstance(addition, Mapping):
        joined = dict(base)
        for key, value in addition.items():
            joined[key] = _merged(joined.get(key), value)
        return joined
    if isinstance(addition, Mapping):
        return {key: _merged(None, value) for key, value in addition.items()}
    return addition
