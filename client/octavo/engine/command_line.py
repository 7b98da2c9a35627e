"""Engine arguments as flags of an `argparse` parser."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

_SHORT = {
    "tensor_parallel_size": "-tp",
    "pipeline_parallel_size": "-pp",
    "data_parallel_size": "-dp",
    "quantization": "-q",
    "compilation_config": "-cc",
    "speculative_config": "-sc",
    "attention_config": "-ac",
}


def add_arguments(parser: Any, kind: type) -> Any:
    """A flag for each field of the dataclass `kind`: --max-model-len for max_model_len."""
    group = parser.add_argument_group(kind.__name__)
    for each in dataclasses.fields(kind):
        names = ["--" + each.name.replace("_", "-")]
        if each.name in _SHORT:
            names.insert(0, _SHORT[each.name])
        default: Any = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        if isinstance(default, bool) or each.type == (bool | None):
            action: Any = argparse.BooleanOptionalAction
            group.add_argument(*names, action=action, default=default)
        elif "list[" in str(each.type):
            group.add_argument(*names, nargs="+", type=_reader(each.type), default=default)
        else:
            group.add_argument(*names, type=_reader(each.type), default=default)
    return parser


def _reader(kind: Any) -> Callable[[str], Any]:
    """What turns a flag's text into a value of `kind`."""
    text = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
    if "dict" in text or "Mapping" in text or "Any" in text:
        return _json_or_text
    if "float" in text:
        return float
    if "int" in text:
        return _number_or_text if "str" in text else int
    return str


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number_or_text(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
