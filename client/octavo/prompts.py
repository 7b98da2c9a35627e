"""Prompts of every form as what the engine takes."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from octavo.inputs import PromptType as PromptType
from octavo.tokenization import TokenizationOptions
from octavo_protocol.errors import ValidationError
from octavo_protocol.text_encoding import Truncation, encode_texts
from octavo_protocol.tokenizer import Tokenizer

_TEXT_KEYS = frozenset({"prompt", "cache_salt"})
_TOKENS_KEYS = frozenset({"prompt_token_ids", "prompt", "cache_salt"})
_TOKENS_EXTRAS = frozenset({"token_type_ids", "prompt_token_offsets"})
# Forms and options that are known and cannot be honoured, with the reason.
_MISSING = {
    "prompt_embeds": "prompts as vectors are not supported; give token ids",
    "encoder_prompt": "encoder-decoder models are not supported",
    "decoder_prompt": "encoder-decoder models are not supported",
    "data": "there are no input plugins here; give text or token ids",
    "data_format": "there are no input plugins here; give text or token ids",
    "multi_modal_data": "models here take text only",
    "multi_modal_uuids": "models here take text only",
    "mm_processor_kwargs": "models here take text only",
    "media_io_kwargs": "models here take text only",
}


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What the engine gets. text: None for a prompt that came as token ids.

    token_type_ids: of models that tell a pair's texts apart; empty: all 0.
    """

    token_ids: list[int]
    text: str | None = None
    cache_salt: str = ""
    token_type_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PromptRenderer:
    """Makes `RenderedPrompt`s. tokenizer: None = token ids only.

    pools: there is no output, so that the prompt may fill the context; where text is cut, the
    special tokens around it stay.
    """

    tokenizer: Tokenizer | None
    max_model_len: int
    pools: bool = False

    def render(self, prompt: Any, options: TokenizationOptions) -> RenderedPrompt:
        """Raises TypeError for what is no prompt, `ValidationError` for what is not supported."""
        if isinstance(prompt, str):
            return RenderedPrompt(self.encode(prompt, options), prompt)
        if isinstance(prompt, Mapping):
            return self._render_dict(prompt, options)
        if _is_token_ids(prompt):
            return RenderedPrompt(self.truncation(options).tokens(list(prompt)))
        raise TypeError(
            "a prompt must be a string, a list of token ids, {'prompt': ...} or "
            f"{{'prompt_token_ids': ...}}, not {type(prompt).__name__}"
        )

    def encode(
        self, text: str, options: TokenizationOptions, *, add_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of a text. Raises `ValidationError` without a tokenizer and for none."""
        if self.tokenizer is None:
            raise ValidationError(
                "skip_tokenizer_init=True leaves no tokenizer: give token ids", parameter="prompt"
            )
        truncation = self.truncation(options)
        if options.add_special_tokens is not None:
            add_special_tokens = options.add_special_tokens
        text = options.text(text)
        if self.pools:
            [token_ids] = encode_texts(
                self.tokenizer, [text], truncation, add_special_tokens=add_special_tokens
            )
        else:
            token_ids = truncation.tokens(
                self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            )
        if not token_ids:
            raise ValidationError("prompt cannot be empty", parameter="prompt")
        return token_ids

    def truncation(self, options: TokenizationOptions) -> Truncation:
        """What the options ask for: of a prompt that is generated from, its end stays."""
        limit = options.max_tokens
        if limit == -1:
            limit = self.max_model_len - (0 if self.pools else 1)
        return Truncation(limit, options.truncation_side or ("right" if self.pools else "left"))

    def _render_dict(
        self, prompt: Mapping[str, Any], options: TokenizationOptions
    ) -> RenderedPrompt:
        _check_keys(prompt)
        salt, text = prompt.get("cache_salt") or "", prompt.get("prompt")
        if not isinstance(salt, str):
            raise TypeError(f"a prompt's cache_salt must be a string, not {type(salt).__name__}")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"a prompt's text must be a string, not {type(text).__name__}")
        if "prompt_token_ids" in prompt:
            token_ids = prompt["prompt_token_ids"]
            if not _is_token_ids(token_ids):
                raise TypeError("a prompt's prompt_token_ids must be a list of integers")
            types = prompt.get("token_type_ids") or []
            return RenderedPrompt(
                self.truncation(options).tokens(list(token_ids)), text, salt, list(types)
            )
        if text is None:
            raise TypeError("a prompt's text must be a string, not None")
        return RenderedPrompt(self.encode(text, options), text, salt)


def as_list(prompts: Any) -> list[Any]:
    """One prompt or many as a list. A flat list of integers is one prompt.

    Arrays, columns of tables and generators of prompts are many. Raises TypeError for others.
    """
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | Set):
        raise TypeError(
            f"prompts must be a string, token ids, a dict or a list of these, not "
            f"{type(prompts).__name__}"
        )
    together = list(prompts)
    return [together] if together and _is_token_ids(together) else together


def _is_token_ids(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def _check_keys(prompt: Mapping[str, Any]) -> None:
    for name, reason in _MISSING.items():
        value = prompt.get(name)
        if value is not None and not (isinstance(value, Mapping | list) and not value):
            raise ValidationError(f"a prompt with {name!r}: {reason}", parameter=name)
    given = {name for name in prompt if name not in _MISSING}
    known = _TOKENS_KEYS | _TOKENS_EXTRAS if "prompt_token_ids" in prompt else _TEXT_KEYS
    unknown = sorted(given - known)
    if unknown or not {"prompt", "prompt_token_ids"} & given:
        raise TypeError(
            f"a prompt dict has {sorted(_TOKENS_KEYS)}; "
            + (f"{unknown} is not supported" if unknown else "it lacks 'prompt'")
        )
