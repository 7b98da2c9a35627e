"""The forms in which a prompt may be given."""

from typing import Any, NotRequired, TypedDict


class _Options(TypedDict):
    """What every dict form may carry. Only `cache_salt` is honoured; this platform takes text.

    cache_salt: prompts with different salts share no cached blocks.
    """

    cache_salt: NotRequired[str]
    multi_modal_data: NotRequired[dict[str, Any] | None]
    mm_processor_kwargs: NotRequired[dict[str, Any] | None]
    media_io_kwargs: NotRequired[dict[str, Any] | None]
    multi_modal_uuids: NotRequired[dict[str, Any] | None]


class TextPrompt(_Options):
    """A prompt as text."""

    prompt: str


class TokensPrompt(_Options):
    """A prompt as token ids, used as they are. `prompt` is only reported back."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    token_type_ids: NotRequired[list[int]]
    prompt_token_offsets: NotRequired[list[tuple[int, int]]]


class EmbedsPrompt(_Options):
    """A prompt as vectors [tokens, hidden size]; refused: the engine embeds tokens itself."""

    prompt_embeds: Any
    prompt: NotRequired[str]
    prompt_token_ids: NotRequired[list[int]]
    prompt_is_token_ids: NotRequired[Any]


class DataPrompt(TypedDict):
    """A prompt for an input plugin; refused: there are no such plugins."""

    data: Any
    data_format: str


SingletonPrompt = str | list[int] | TextPrompt | TokensPrompt | EmbedsPrompt


class ExplicitEncoderDecoderPrompt(TypedDict):
    """Prompts of an encoder-decoder model; refused: only decoders run here."""

    encoder_prompt: SingletonPrompt
    decoder_prompt: SingletonPrompt | None


PromptType = SingletonPrompt | ExplicitEncoderDecoderPrompt | DataPrompt
