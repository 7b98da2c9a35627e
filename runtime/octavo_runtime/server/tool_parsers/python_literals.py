"""Python literals and lists of literal arguments, read as syntax trees: nothing is evaluated."""

import ast
import warnings
from typing import Any

from octavo_runtime.server.json_scanner import is_sendable

_NAMES = {"true": True, "false": False, "null": None}


def parse_literal(text: str) -> object:
    """The value of a literal in JSON's types. Raises ValueError."""
    try:
        return _value(_parse(text))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def parse_arguments(text: str) -> dict[str, object]:
    """The arguments that `(key=literal, ...)` writes. Raises ValueError."""
    call = _parse(f"call{text}")
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a list of keyword arguments")
    try:
        return {_argument_name(keyword): _value(keyword.value) for keyword in call.keywords}
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _parse(text: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not Python: {error}") from error


def _argument_name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("** is no argument")
    return keyword.arg


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str(text)):
            return _without_surrogate_pairs(text)
        case ast.Constant(value=bool() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _without_surrogate_pairs(node.value)
    raise ValueError("a key is a string")


def _without_surrogate_pairs(text: str) -> str:
    r"""JSON's `\ud83d\ude00` is one character, Python's are two."""
    if is_sendable(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
