"""Constraints as grammars: which texts they take, and what is refused, over a real tokenizer."""

import json
import time
from typing import Any

import numpy as np
import pytest
from tests.fakes.tiny_model import END, START, VOCAB_SIZE, tiny_tokenizer

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.structured_outputs.compiler import GrammarCompiler
from octavo_runtime.structured_outputs.grammar import to_grammar
from octavo_runtime.structured_outputs.lark import LarkBuilder
from octavo_runtime.structured_outputs.request import RequestGrammars

TOKENIZER = tiny_tokenizer()
END_ID, START_ID = (TOKENIZER.encode(token)[0] for token in (END, START))
SPECIAL = {END: END_ID, START: START_ID}
COMPILER = GrammarCompiler(TOKENIZER.bundle.tokenizer_json, VOCAB_SIZE, [END_ID])
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def takes(params: StructuredOutputsParams, text: str) -> bool:
    """`text`, its special tokens as tokens, is a whole output; every token was in the mask."""
    matcher = COMPILER.compile(to_grammar(params, SPECIAL)).result().deep_copy()
    for token_id in TOKENIZER.encode(text):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if not np.unpackbits(mask, bitorder="little")[token_id]:
            return False
        assert matcher.consume_token(token_id)
    return bool(matcher.is_accepting())


def constraint(**fields: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**fields)


@pytest.mark.parametrize(
    ("params", "taken", "refused"),
    [
        (
            constraint(json=PERSON),
            ['{"name": "x", "age": 3}', '{\n  "name":"é🙂",\t"age":-1}'],
            ['{"name": "x"}', '{"age": 3, "name": "x"}', '{"name": "x", "age": "3"}', "{}", ""],
        ),
        (constraint(json=json.dumps(PERSON)), ['{"name":"x","age":3}'], ["[]"]),
        (
            constraint(json=PERSON, disable_any_whitespace=True),
            ['{"name":"x y","age":3}'],
            ['{"name": "x","age":3}', '{"name":"x","age":3 }'],
        ),
        (
            constraint(json=PERSON, whitespace_pattern=" ?"),
            ['{"name": "x" , "age": 3 }'],
            ['{"name":  "x","age":3}', '{\n"name":"x","age":3}'],
        ),
        (constraint(json_object=True), ["{}", '{"a": {"b": [1, null]}}'], ["[]", "1", '"{}"']),
        (
            constraint(
                json={"type": "object", "properties": {"properties": {"type": "integer"}}},
                disable_additional_properties=True,
            ),
            ["{}", '{"properties": 1}'],
            ['{"other": 1}', '{"additionalProperties": 1}'],
        ),
        (constraint(regex=r"\d{3}-\w+"), ["123-é"], ["12-a", "123-", "x123-a", "123-a!"]),
        (constraint(regex="^a/b\n$"), ["a/b\n"], ["a/b", "a\\/b\n"]),
        (constraint(regex=r"a\/b|c"), ["a/b", "c"], ["a", "a/bc"]),
        (
            constraint(choice=["yes", "ye", 'say "no"', "a\\n", "🙂"]),
            ["yes", "ye", 'say "no"', "a\\n", "🙂"],
            ["", "no", "y", "a\n", "yesyes"],
        ),
        (constraint(grammar='start: "x" Y\nY: /z+/'), ["xz", "xzzz"], ["x", "xy", "zx"]),
        (
            constraint(grammar='root ::= expr\nexpr ::= num ("+" num)*\nnum ::= [0-9]+'),
            ["1", "1+23"],
            ["", "+", "1+"],
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, StructuredOutputsParams) else None,
)
def test_a_constraint_takes_its_texts_and_no_others(
    params: StructuredOutputsParams, taken: list[str], refused: list[str]
) -> None:
    assert [text for text in taken if not takes(params, text)] == []
    assert [text for text in refused if takes(params, text)] == []


def test_white_space_between_json_tokens_is_bounded_by_default() -> None:
    assert takes(constraint(json_object=True), "{" + " " * 64 + "}")
    assert not takes(constraint(json_object=True), "{" + " " * 65 + "}")


# -- structural tags ------------------------------------------------------------------------------


def tag(begin: str, name: str, end: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"}},
        "required": [name],
        "additionalProperties": False,
    }
    content = {"type": "json_schema", "json_schema": schema}
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def structural(wanted: dict[str, Any]) -> StructuredOutputsParams:
    return constraint(structural_tag=json.dumps({"type": "structural_tag", "format": wanted}))


def triggered(**options: Any) -> dict[str, Any]:
    return {
        "type": "triggered_tags",
        "triggers": ["<f="],
        "tags": [tag("<f=a>", "a", "</f>"), tag("<f=b>", "b", "</f>")],
        **options,
    }


ANY_TEXT = {"type": "any_text"}
CALL_A, CALL_B = '<f=a>{"a": 1}</f>', '<f=b>{"b":2}</f>'


@pytest.mark.parametrize(
    ("wanted", "taken", "refused"),
    [
        ({"type": "const_string", "value": 'a"b\n'}, ['a"b\n'], ["a", ""]),
        ({"type": "const_string", "value": ""}, [""], ["a"]),
        ({"type": "regex", "pattern": "[ab]+"}, ["ab"], ["", "c"]),
        ({"type": "grammar", "grammar": 'root ::= "x" [0-9]'}, ["x1"], ["x"]),
        (ANY_TEXT, ["", "any text <b>\n"], [f"a{START}"]),
        (
            {
                "type": "or",
                "elements": [{"type": "const_string", "value": "a"}, tag("b", "n", "c")],
            },
            ["a", 'b{"n":1}c'],
            ["b", "ab", ""],
        ),
        (
            {
                "type": "sequence",
                "elements": [
                    ANY_TEXT,
                    {"type": "const_string", "value": "</think>"},
                    {"type": "regex", "pattern": "[0-9]+"},
                ],
            },
            ["so </thin</think>12", "</think>1"],
            ["so", "a</think>b", "a</think>1</think>2"],
        ),
        (
            {"type": "tag", "begin": "<t>", "content": ANY_TEXT, "end": "</t>"},
            ["<t></t>", "<t>a<b</t>"],
            ["<t>", "<t></t>x", "<t>a</t></t>"],
        ),
        (
            {
                "type": "tag",
                "begin": "[",
                "content": {"type": "regex", "pattern": ".*"},
                "end": "]",
            },
            ["[]", "[a]", "[a]b]"],
            ["[a"],
        ),
        (
            triggered(),
            ["", "only text", f"a{CALL_A}b{CALL_B}c", f"{CALL_A}{CALL_A}", "a < f="],
            ["<f=", "<f=c>", '<f=a>{"b": 1}</f>', 'text <f=a>{"a": 1}'],
        ),
        (triggered(at_least_one=True), [f"{CALL_A} then {CALL_B}."], ["", "text", f"text{CALL_A}"]),
        (triggered(stop_after_first=True), ["", "text", f"text{CALL_B}"], [f"{CALL_A} "]),
        (
            triggered(at_least_one=True, stop_after_first=True),
            [CALL_A, CALL_B],
            ["", "x", CALL_A + CALL_B],
        ),
        (
            {"type": "tag", "begin": "<all>", "content": triggered(), "end": "</all>"},
            ["<all></all>", f"<all>a{CALL_A}b</all>"],
            ["<all>", f"<all>{CALL_A}", "<all></all>x"],
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": [tag("[", "a", "]")],
                "separator": ", ",
            },
            ["", '[{"a":1}]', '[{"a":1}], [{"a":2}]'],
            ['[{"a":1}][{"a":2}]', '[{"a":1}], '],
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": [tag("[", "a", "]")],
                "separator": ";",
                "at_least_one": True,
                "stop_after_first": True,
            },
            ['[{"a":1}]'],
            ["", '[{"a":1}];[{"a":1}]'],
        ),
    ],
)
def test_a_structural_tag_takes_its_texts_and_no_others(
    wanted: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    params = structural(wanted)
    assert [text for text in taken if not takes(params, text)] == []
    assert [text for text in refused if takes(params, text)] == []


def test_the_older_form_of_a_structural_tag_is_triggered_tags() -> None:
    schema = tag("", "a", "")["content"]["json_schema"]
    older = {
        "type": "structural_tag",
        "structures": [{"begin": "<f=a>", "schema": schema, "end": "</f>"}],
        "triggers": ["<f="],
    }
    params = constraint(structural_tag=json.dumps(older))
    assert takes(params, f"text {CALL_A} text")
    assert not takes(params, "text <f=b>")


def test_special_tokens_in_a_tag_are_tokens_and_not_their_characters() -> None:
    wanted = triggered(triggers=[START], tags=[tag(f"{START}\n", "a", f"\n{START}")])
    params = structural(wanted)
    assert takes(params, f'text{START}\n{{"a": 1}}\n{START} and text')
    matcher = COMPILER.compile(to_grammar(params, SPECIAL)).result()
    spelled = [token_id for character in START for token_id in TOKENIZER.encode(character)]
    assert len(spelled) == len(START)
    assert matcher.validate_tokens(spelled) == len(START) - 1  # all but the one that completes it
    assert matcher.validate_tokens([START_ID]) == 1


def test_a_trigger_that_cuts_a_special_token_means_the_whole_token() -> None:
    params = structural(triggered(triggers=["<|st"], tags=[tag(f"{START}call", "a", "")]))
    assert takes(params, f'a{START}call{{"a": 1}} b')
    assert not takes(params, f"a{START}x")


def test_literals_are_cut_at_special_tokens_the_longest_first() -> None:
    lark = LarkBuilder({"<a": 5, "<a>": 7})
    assert lark.pieces("x<a>y<ab") == ["x", 7, "y", 5, "b"]
    assert lark.literal("x<a>") == '"x" <[7]>'
    assert [lark.cut("x<a>y", length) for length in (1, 2, 3, 4, 5)] == [1, 4, 4, 4, 5]


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        (5, "a format must be an object with a `type`"),
        ({"type": "nonsense"}, "unknown format type 'nonsense'"),
        ({"type": "regex"}, "needs `pattern`"),
        ({"type": "regex", "pattern": 3}, "`pattern` must be text"),
        ({"type": "regex", "pattern": "a", "flags": "i"}, "has no field 'flags'"),
        ({"type": "or", "elements": []}, "`elements` must be a list that is not empty"),
        (triggered(triggers=["<g="]), "begins with no trigger"),
        (triggered(tags=[{"type": "any_text"}]), "must have formats of type tag"),
        (triggered(at_least_one="yes"), "`at_least_one` must be true or false"),
        (
            {"type": "sequence", "elements": [ANY_TEXT, {"type": "regex", "pattern": "a"}]},
            "free text must come last",
        ),
        (
            {
                "type": "tags_with_separator",
                "tags": [{"type": "tag", "begin": "a", "content": ANY_TEXT, "end": ""}],
                "separator": ",",
            },
            "need an `end`",
        ),
    ],
)
def test_a_malformed_structural_tag_is_refused_by_name(wanted: Any, cause: str) -> None:
    with pytest.raises(ValidationError, match=cause) as caught:
        to_grammar(structural(wanted), SPECIAL)
    assert caught.value.parameter == "structured_outputs"


# -- what is refused ------------------------------------------------------------------------------


def grammars() -> RequestGrammars:
    return RequestGrammars(TOKENIZER, VOCAB_SIZE, [END_ID])


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"json": {"type": "strin"}}, "Invalid type: strin"),
        ({"json": {"not": {"type": "string"}}}, "not"),
        ({"json": {"$ref": "http://127.0.0.1:9/x.json"}}, "not present in a registry"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "not present in a registry"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
        ({"json": {"type": "object"}, "whitespace_pattern": "("}, "unclosed group"),
        ({"json": '{"const": NaN}'}, "expected value"),
        ({"json": {"$ref": "#"}}, "no output can satisfy it"),
        ({"json": {"oneOf": [{"type": "string"}, {"minLength": 3}]}}, "write anyOf"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"choice": ["\ud800"]}, "hex escape"),
        ({"grammar": "nonsense"}, "neither Lark"),
        ({"grammar": "start: <|nothing|>"}, "unknown special token"),
        ({"grammar": "root ::= missing"}, "not EBNF"),
        ({"grammar": 'root ::= "\\'}, "not EBNF"),
        ({"grammar": "start: " + "(" * 5000}, "nested"),
        ({"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000}, "not EBNF"),
        ({"grammar": "root ::= a0\n" + "a0 ::= a0\n" * 3000}, "too many"),
        ({"regex": "a" * 300_000}, "at most 262144"),
        ({"choice": ["a" * 300_000]}, "at most 262144"),
        ({"regex": "(" * 300 + "a" + ")" * 300}, "nest"),
        (
            {"json": {"allOf": [{"anyOf": [{"const": i}, {"const": -i}]} for i in range(30)]}},
            "schema too large|Unsatisfiable",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_soon_with_its_cause(
    fields: dict[str, Any], cause: str
) -> None:
    started = time.monotonic()
    with pytest.raises(ValidationError, match=cause) as caught:
        grammars().grammar(SamplingParams(structured_outputs=constraint(**fields)))
    assert caught.value.parameter == "structured_outputs"
    assert len(caught.value.message) < 2000
    assert time.monotonic() - started < 20


def _chain(rule: str, last: str) -> str:
    """As many rules as the size limit takes, each of which refers to the next."""
    rules = [rule.format(i, i + 1) for i in range(16_000)]
    rules = rules[: 255_000 // max(map(len, rules))]
    return "\n".join([*rules, last.format(len(rules))])


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": _chain("a{}: a{}", 'a{}: "x"\nstart: a0')},
        {"grammar": _chain('A{}: "x" A{} | "y"', 'A{}: "x"\nstart: A0')},
        {"grammar": _chain('A{}: ("x" A{})*', 'A{}: "x"\nstart: A0')},
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(.*a){1000}"},
        {"regex": "(?s).*a.{200}b.{100}"},
        {"grammar": 'start: s\ns: s s s | s s | "a" | ""'},
        {"json": {"type": "array", "items": {"type": "object"}, "minItems": 10**9}},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_a_hostile_constraint_neither_crashes_nor_hangs(fields: dict[str, Any]) -> None:
    started = time.monotonic()
    matcher = COMPILER.compile(to_grammar(constraint(**fields), SPECIAL)).result().deep_copy()
    for _ in range(20):
        mask = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if matcher.is_stopped():
            break
        matcher.consume_token(int(mask.nonzero()[0][-1]))
    assert time.monotonic() - started < 20


def test_constraints_need_a_tokenizer() -> None:
    without = RequestGrammars(None, VOCAB_SIZE, [END_ID])
    with pytest.raises(ValidationError, match="no tokenizer"):
        without.grammar(SamplingParams(structured_outputs=constraint(regex="a")))
    assert without.grammar(SamplingParams()) == ""


def test_a_grammar_is_compiled_once_and_forgotten_when_others_need_the_room() -> None:
    compiler = GrammarCompiler(TOKENIZER.bundle.tokenizer_json, VOCAB_SIZE, [END_ID])
    first = compiler.compile('start: "a"')
    assert compiler.compile('start: "a"') is first
    for i in range(300):
        compiler.compile(f'start: "a{i}"')
    assert compiler.compile('start: "a299"').result() is not None
    assert compiler.compile('start: "a"') is not first
    compiler.close()
