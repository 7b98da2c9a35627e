"""The prompt forms that `LLM.generate` takes, as one type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from octavo_protocol.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt as token ids, used as they are. `prompt` is only reported back."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


SingletonPrompt = str | list[int] | TextPrompt | TokensPrompt
PromptType = SingletonPrompt

_TEXT_KEYS = frozenset({"prompt", "cache_salt"})
_TOKENS_KEYS = frozenset({"prompt_token_ids", "prompt", "cache_salt"})


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """What the engine gets. text: None for a prompt that came as token ids."""

    token_ids: list[int]
    text: str | None = None
    cache_salt: str = ""


def as_list(prompts: PromptType | Sequence[PromptType]) -> list[Any]:
    """One prompt or many as a list. A flat list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(
            f"prompts must be a string, token ids, a dict or a list of these, not "
            f"{type(prompts).__name__}"
        )
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]
    return list(prompts)


def render(prompt: Any, tokenizer: Tokenizer) -> RenderedPrompt:
    """Token ids of one prompt in any form. Raises TypeError for what is none of the forms."""
    if isinstance(prompt, str):
        return RenderedPrompt(tokenizer.prompt_token_ids(prompt), prompt)
    if isinstance(prompt, Mapping):
        return _render_dict(prompt, tokenizer)
    if isinstance(prompt, Sequence) and all(isinstance(item, int) for item in prompt):
        return RenderedPrompt(list(prompt))
    raise TypeError(
        "a prompt must be a string, a list of token ids, {'prompt': ...} or "
        f"{{'prompt_token_ids': ...}}, not {type(prompt).__name__}"
    )


def _render_dict(prompt: Mapping[str, Any], tokenizer: Tokenizer) -> RenderedPrompt:
    known = _TOKENS_KEYS if "prompt_token_ids" in prompt else _TEXT_KEYS
    unknown = sorted(set(prompt) - known)
    if unknown or not {"prompt", "prompt_token_ids"} & set(prompt):
        raise TypeError(
            f"a prompt dict has {sorted(known)}; "
            + (f"{unknown} is not supported" if unknown else "it lacks 'prompt'")
        )
    salt = prompt.get("cache_salt") or ""
    if "prompt_token_ids" in prompt:
        return RenderedPrompt(list(prompt["prompt_token_ids"]), prompt.get("prompt"), salt)
    return RenderedPrompt(tokenizer.prompt_token_ids(prompt["prompt"]), prompt["prompt"], salt)
