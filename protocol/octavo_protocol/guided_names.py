"""The names that constraints had before `structured_outputs`, as what they mean today."""

from collections.abc import Mapping
from typing import Any

# Former name -> the field of `structured_outputs`.
GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_json_object": "json_object",
    "guided_whitespace_pattern": "whitespace_pattern",
    "structural_tag": "structural_tag",
}
# They chose among libraries; there is one here.
WITHOUT_MEANING = ("guided_decoding_backend",)


def translate_guided(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with the former names as fields of a dict `structured_outputs`.

    Raises ValueError where both are given.
    """
    old = {name: data[name] for name in GUIDED if data.get(name) is not None}
    rest = {
        name: value
        for name, value in data.items()
        if name not in GUIDED and name not in WITHOUT_MEANING
    }
    if not old:
        return rest
    if rest.get("structured_outputs") is not None:
        raise ValueError(f"{next(iter(old))} is the old form of structured_outputs: give only one")
    return rest | {"structured_outputs": {GUIDED[name]: value for name, value in old.items()}}
