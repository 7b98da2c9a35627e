"""Structural tags: free text in which tagged parts are constrained. Both of vLLM's forms.

    {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}      the older one
    {"type": "structural_tag", "format": FORMAT}

A FORMAT is an object with a `type`: const_string, json_schema, regex, grammar, any_text, sequence,
or, tag, triggered_tags, tags_with_separator. Source of the formats: XGrammar's structural tags.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo_runtime.structured_outputs.lark import LarkBuilder
from octavo_runtime.structured_outputs.tag_format import (
    Format,
    StructuralTagError,
    field_of,
    flag_of,
    from_older_form,
    items_of,
    kind_of,
    string,
    tags_of,
    text_of,
)

# How a JSON schema or a grammar text becomes a grammar that can be nested.
Nest = Callable[[Any], dict[str, Any]]
NOTHING = '""'


class StructuralTagCompiler:
    """One structural tag → one grammar.

    schema, grammar: make the nested grammars of json_schema and grammar formats.
    """

    def __init__(self, special_tokens: Mapping[str, int], *, schema: Nest, grammar: Nest) -> None:
        self._lark = LarkBuilder(special_tokens)
        self._schema = schema
        self._grammar = grammar

    def compile(self, tag: Format) -> str:
        """Raises `StructuralTagError`."""
        if tag.get("format") is not None:
            return self._lark.build(self._emit(tag["format"], ""))
        if "structures" in tag and "triggers" in tag:
            return self._lark.build(self._emit(from_older_form(tag), ""))
        raise StructuralTagError("give `format`, or `structures` and `triggers`")

    def _emit(self, item: Any, then: str) -> str:
        """Lark of a format, and of the literal text that follows it ("" for none)."""
        kind = kind_of(item)
        match kind:
            case "const_string":
                return self._lark.literal(text_of(item, "value") + then) or NOTHING
            case "json_schema":
                schema = self._lark.nested(self._schema(field_of(item, "json_schema")))
                return _join(schema, self._lark.literal(then))
            case "regex":
                return self._lark.regex(text_of(item, "pattern"), then)
            case "grammar":
                grammar = self._lark.nested(self._grammar(text_of(item, "grammar")))
                return _join(grammar, self._lark.literal(then))
            case "any_text":
                if then:
                    return self._lark.text_until([then])[then]
                return self._lark.text_to_the_end()
            case "sequence":
                return self._sequence(items_of(item, "elements"), then)
            case "or":
                return _any_of([self._emit(each, then) for each in items_of(item, "elements")])
            case "tag":
                return _join(self._lark.literal(text_of(item, "begin")), self._tag_rest(item, then))
            case "triggered_tags":
                return self._triggered_tags(item, then)
            case "tags_with_separator":
                return self._tags_with_separator(item, then)
        raise StructuralTagError(f"unknown format type {kind!r}")

    def _tag_rest(self, tag: Format, then: str) -> str:
        """A tag after its beginning."""
        end = text_of(tag, "end")
        if not end:
            return self._emit(field_of(tag, "content"), then)
        return _join(self._emit(field_of(tag, "content"), end), self._lark.literal(then))

    def _sequence(self, elements: Sequence[Format], then: str) -> str:
        """Free text ends at the literal that follows it; that literal goes with the text."""
        parts: list[str] = []
        taken = ""  # the literal that the part before has already matched
        for i, element in enumerate(elements):
            following = elements[i + 1] if i + 1 < len(elements) else None
            goes_on = then if following is None else ""
            if following is not None and _ends_in_text(element):
                goes_on = _leading_literal(following)
            parts.append(self._without_leading(element, taken, goes_on))
            taken = goes_on if following is not None else ""
        return _join(*parts)

    def _without_leading(self, element: Format, taken: str, then: str) -> str:
        if not taken:
            return self._emit(element, then)
        if kind_of(element) == "tag":
            return self._tag_rest(element, then)
        return self._lark.literal(then)

    def _triggered_tags(self, item: Format, then: str) -> str:
        """Free text and tags: a tag begins wherever a trigger occurs in the text.

        at_least_one: the output begins with a tag. stop_after_first: it ends after one.
        """
        triggers = [string(trigger, "triggers") for trigger in items_of(item, "triggers")]
        stop_after_first = flag_of(item, "stop_after_first")
        beginnings: dict[str, list[str]] = {}  # by trigger: what may follow it
        firsts = []
        for tag in tags_of(item):
            trigger = self._trigger_of(tag, triggers)
            begin = text_of(tag, "begin")
            rest = self._lark.rule(self._tag_rest(tag, then if stop_after_first else "") or NOTHING)
            firsts.append(_join(self._lark.literal(begin), rest))
            after_trigger = _join(self._lark.literal(begin[len(trigger) :]), rest)
            beginnings.setdefault(trigger, []).append(after_trigger)
        heads = self._lark.text_until([*beginnings, *({then} - {*beginnings, ""})])
        text = heads[then] if then else self._lark.text_to_the_end(list(beginnings))
        in_text = self._lark.rule(
            " | ".join(
                f"{heads[trigger]} {_any_of(rests)}" for trigger, rests in beginnings.items()
            )
        )
        if flag_of(item, "at_least_one"):
            first = _any_of(firsts)
            return first if stop_after_first else f"{first} {in_text}* {text}"
        return f"({in_text} | {text})" if stop_after_first else f"{in_text}* {text}"

    def _trigger_of(self, tag: Format, triggers: Sequence[str]) -> str:
        """The trigger that begins `tag`, up to the end of the special token that it cuts."""
        begin = text_of(tag, "begin")
        found = [trigger for trigger in triggers if trigger and begin.startswith(trigger)]
        if not found:
            raise StructuralTagError(f"the tag that begins with {begin!r} begins with no trigger")
        return begin[: self._lark.cut(begin, len(min(found, key=len)))]

    def _tags_with_separator(self, item: Format, then: str) -> str:
        tags = tags_of(item)
        if any(_ends_in_text(tag) for tag in tags):
            raise StructuralTagError("tags with a separator need an `end` after free text")
        one = self._lark.rule(_any_of([self._emit(tag, "") for tag in tags]))
        several = one
        if not flag_of(item, "stop_after_first"):
            several = f"{one} ({_join(self._lark.literal(text_of(item, 'separator')), one)})*"
        if not flag_of(item, "at_least_one"):
            several = f"({several})?"
        return _join(several, self._lark.literal(then))


def _ends_in_text(item: Any) -> bool:
    """The format's end is not visible by itself: free text may go on."""
    match kind_of(item):
        case "any_text":
            return True
        case "triggered_tags":
            return not (flag_of(item, "stop_after_first") and flag_of(item, "at_least_one"))
        case "or":
            return any(_ends_in_text(each) for each in items_of(item, "elements"))
        case "sequence":
            return _ends_in_text(items_of(item, "elements")[-1])
        case "tag":
            return not text_of(item, "end") and _ends_in_text(field_of(item, "content"))
    return False


def _leading_literal(item: Any) -> str:
    kind = kind_of(item)
    literal = ""
    if kind == "const_string":
        literal = text_of(item, "value")
    elif kind == "tag":
        literal = text_of(item, "begin")
    if not literal:
        raise StructuralTagError(
            f"free text must come last, or before a const_string or a tag, not before {kind}"
        )
    return literal


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _any_of(options: Sequence[str]) -> str:
    if len(options) == 1:
        return options[0]
    return f"({' | '.join(option or NOTHING for option in options)})"
