"""`TokenizationOptions`: how `tokenization_kwargs` change the way from text to token ids."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo_protocol.errors import ValidationError
from octavo_protocol.tokenizer import Tokenizer

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

    truncation_side: where tokens are cut off. add_special_tokens: None = as the caller does by
    default (text: yes, chat: no, since the template has them).
    """

    max_tokens: int | None = None
    truncation_side: Literal["left", "right"] = "left"
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
        side: Any = given.get("truncation_side") or "left"
        if side not in ("left", "right"):
            raise _error(f"truncation_side must be 'left' or 'right', got {side!r}")
        return cls(
            max_tokens=_max_tokens(given),
            truncation_side=side,
            add_special_tokens=given.get("add_special_tokens"),
            do_lower_case=bool(given.get("do_lower_case")),
        )

    def encode(
        self, tokenizer: Tokenizer, text: str, max_model_len: int, *, add_special_tokens: bool
    ) -> list[int]:
        """Token ids of `text`, cut if need be."""
        if self.add_special_tokens is not None:
            add_special_tokens = self.add_special_tokens
        token_ids = tokenizer.encode(
            text.lower() if self.do_lower_case else text, add_special_tokens=add_special_tokens
        )
        return self.cut(token_ids, max_model_len)

    def cut(self, token_ids: list[int], max_model_len: int) -> list[int]:
        """At most `max_tokens` of them. One place in the context is left for the output."""
        if self.max_tokens is None:
            return token_ids
        room = max_model_len - 1 if self.max_tokens == -1 else self.max_tokens
        if len(token_ids) <= room:
            return token_ids
        return token_ids[-room:] if self.truncation_side == "left" else token_ids[:room]


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
