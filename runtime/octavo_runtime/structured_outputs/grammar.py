"""`StructuredOutputsParams` → one grammar as llguidance takes it, as JSON text.

Nothing is compiled here; see `compiler.py` for what checks and runs the grammar.
"""

import json
from collections.abc import Mapping
from typing import Any

from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

from octavo_protocol.errors import ValidationError
from octavo_protocol.structured_outputs import StructuredOutputsParams
from octavo_runtime.structured_outputs.lark import quote, regex_literal
from octavo_runtime.structured_outputs.structural_tag import StructuralTagCompiler
from octavo_runtime.structured_outputs.tag_format import StructuralTagError

# What is longer is refused unread: compiling takes time, memory and stack in proportion.
MAX_GRAMMAR_CHARS = 256 * 1024
# The GBNF converter looks at every rule again for each rule that it classifies.
MAX_GBNF_WORK = 4_000_000
# Without a bound small models write white space between JSON tokens for ever.
WHITESPACE = r"[ \t\n\r]{1,64}"
# Keywords of JSON schema that hold plain values, and those that hold schemas by name.
_VALUES = frozenset({"const", "enum", "default", "examples", "required"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def to_grammar(params: StructuredOutputsParams, special_tokens: Mapping[str, int]) -> str:
    """The grammar of `params`. special_tokens: texts of the tokenizer's special tokens → ids.

    Raises `ValidationError` naming the cause; what only compiling finds out is not among it.
    """
    _check_size(params)
    try:
        grammar = _translate(params, special_tokens)
        grammar.encode()
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise refusal(f"{params.kind}: {error}") from error
    return grammar


def refusal(cause: str) -> ValidationError:
    return ValidationError(f"structured_outputs: {cause}", parameter="structured_outputs")


def _translate(params: StructuredOutputsParams, special_tokens: Mapping[str, int]) -> str:
    if params.json is not None:
        schema = json.loads(params.json) if isinstance(params.json, str) else params.json
        return _of(_json_schema(schema, params))
    if params.json_object:
        return _of(_json_schema({"type": "object"}, params))
    if params.regex is not None:
        return _of({"lark_grammar": f"start: {regex_literal(params.regex)}"})
    if params.choice is not None:
        choices = " | ".join(quote(choice) for choice in params.choice)
        return _of({"lark_grammar": f"start: CHOICE\nCHOICE: {choices}"})
    if params.grammar is not None:
        return _of(_lark(params.grammar))
    assert params.structural_tag is not None
    compiler = StructuralTagCompiler(
        special_tokens, schema=lambda schema: _json_schema(schema, params), grammar=_lark
    )
    return compiler.compile(json.loads(params.structural_tag))


def _json_schema(schema: Any, params: StructuredOutputsParams) -> dict[str, Any]:
    """A JSON schema, given as text or as JSON, with the options of `params` in it."""
    if isinstance(schema, str):
        schema = json.loads(schema)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise StructuralTagError(f"a JSON schema must be an object, got {json.dumps(schema)}")
    if params.disable_additional_properties:
        schema = _closed(schema)
    options: dict[str, Any] = {"whitespace_pattern": params.whitespace_pattern or WHITESPACE}
    if params.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    return {"json_schema": {**schema, "x-guidance": options}}


def _closed(schema: Any) -> Any:
    """`schema` where objects have only the properties that it names, at every depth."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _VALUES:
            closed[name] = value
        elif name in _MAPS and isinstance(value, dict):
            closed[name] = {key: _closed(each) for key, each in value.items()}
        else:
            closed[name] = _closed(value)
    if "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _lark(text: str) -> dict[str, Any]:
    """A grammar in Lark syntax, or in GBNF (EBNF with `::=`), as Lark."""
    if is_lark_syntax(text):
        return {"lark_grammar": text}
    num_rules = text.count("::=")
    if num_rules == 0:
        raise StructuralTagError("neither Lark (`start: ...`) nor EBNF (`root ::= ...`)")
    if num_rules * len(text) > MAX_GBNF_WORK:
        raise StructuralTagError(f"{num_rules} EBNF rules are too many; write it as Lark")
    try:
        return {"lark_grammar": gbnf_to_lark(text)}
    except Exception as error:
        raise StructuralTagError(f"not EBNF: {error}") from error


def _of(grammar: Mapping[str, Any]) -> str:
    return json.dumps({"grammars": [grammar]})


def _check_size(params: StructuredOutputsParams) -> None:
    value = getattr(params, params.kind)
    if isinstance(value, list):
        size = sum(len(text) + 4 for text in value)
    else:
        size = len(value if isinstance(value, str) else json.dumps(value))
    if size > MAX_GRAMMAR_CHARS:
        raise refusal(f"{params.kind} has {size} characters; at most {MAX_GRAMMAR_CHARS} are taken")
