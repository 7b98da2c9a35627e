"""`TokenizationOptions`: how `tokenization_kwargs` change the way from text to token ids."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo_protocol.errors import ValidationError

_NAMES = (
    *("truncate_prompt_tokens", "truncation_side", "truncation", "max_length"),
    *("add_special_tokens", "do_lower_case", "padding", "pad_prompt_tokens"),
    "needs_detokenization",
)
# Padding gives no prompt that differs; text is always made.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "padding": (None, False, "do_not_pad"),
    "pad_prompt_tokens": (None,),
    "needs_detokenization": (None, True),
}


@dataclass(frozen=True, slots=True)
class TokenizationOptions:
    """max_tokens: longer prompts are cut to so many; None = never, -1 = to what the model takes.

    truncation_side: where tokens are cut off; None = at the start of a prompt that is generated
    from, at the end of one that is pooled. add_special_tokens: None = as the caller does by default
    (text: yes, chat: no, since the template has them).
    """

    max_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    do_lower_case: bool = False

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> "TokenizationOptions":
        """Raises `ValidationError` for an unknown name and for a value that cannot be honoured."""
        given = given or {}
        for name in given:
            if name not in _NAMES:
                near = difflib.get_close_matches(name, _NAMES, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_NAMES)}"
                raise _error(f"there is no option {name!r}; {hint}")
        for name, allowed in _NEUTRAL.items():
            if not any(given.get(name) is value or given.get(name) == value for value in allowed):
                raise _error(f"{name}={given[name]!r} is not supported; leave it out")
        side: Any = given.get("truncation_side")
        if side not in (None, "left", "right"):
            raise _error(f"truncation_side must be 'left' or 'right', got {side!r}")
        return cls(
            max_tokens=_max_tokens(given),
            truncation_side=side,
            add_special_tokens=given.get("add_special_tokens"),
            do_lower_case=bool(given.get("do_lower_case")),
        )

    def text(self, text: str) -> str:
        """The text as it is to be tokenized."""
        return text.lower() if self.do_lower_case else text


def _max_tokens(given: Mapping[str, Any]) -> int | None:
    """truncate_prompt_tokens, or what the Hugging Face names truncation and max_length say."""
    name, value = "truncate_prompt_tokens", given.get("truncate_prompt_tokens")
    if value is None and given.get("truncation") not in (None, False, "do_not_truncate"):
        name, value = "max_length", given.get("max_length", -1)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise _error(f"{name} must be at least 1, or -1 for what the model takes; got {value!r}")
    return value


def _error(message: str) -> ValidationError:
    return ValidationError(f"tokenization_kwargs: {message}", parameter="tokenization_kwargs")
