"""`hf_overrides`: changes to a model's config.json, as a dict or as a function."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from octavo_protocol.errors import ValidationError


def as_overrides(
    folder: Path, given: Mapping[str, Any] | Callable[[Any], Any] | None
) -> dict[str, Any]:
    """Keys and values that replace those of the folder's config.json.

    A function gets the Hugging Face configuration and returns one; what it changed is found by
    comparing. Raises `ValidationError` for a function that returns something else.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    from transformers import AutoConfig

    before = AutoConfig.from_pretrained(folder).to_dict()
    changed = given(AutoConfig.from_pretrained(folder))
    if not hasattr(changed, "to_dict"):
        raise ValidationError(
            "hf_overrides: the function must return the configuration", parameter="hf_overrides"
        )
    after = changed.to_dict()
    return {name: value for name, value in after.items() if before.get(name) != value}
