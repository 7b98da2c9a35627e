"""A fast tokenizer out of a GGUF file's vocabulary, merges and token types.

GGUF names the pre-tokenizer (how text is cut before the merges apply) instead of describing it;
the table below says what each supported name stands for. Others are refused: with the wrong cuts a
model still answers, only worse, and nobody would notice why.
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from octavo_protocol.errors import ConfigError

# The split of the Llama 3 tokenizer, as its tokenizer.json has it.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _TokenType(IntEnum):
    CONTROL = 3
    USER_DEFINED = 4


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _llama3() -> PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_PRE_TOKENIZERS: Mapping[str, Callable[[], PreTokenizer]] = {
    "gpt-2": _gpt2,
    "llama-bpe": _llama3,
    "smollm": _smollm,
}


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer.ggml.*` describes.

    Raises `ConfigError` for a vocabulary or pre-tokenizer that is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ConfigError(
            f"the GGUF file has a tokenizer of kind {kind!r}; supported is 'gpt2', byte-level BPE. "
            "Use the model's Hugging Face folder (safetensors and tokenizer.json) instead."
        )
    name = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if name not in _PRE_TOKENIZERS:
        raise ConfigError(
            f"the GGUF file has the pre-tokenizer {name!r}; supported are "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}. Use the model's Hugging Face folder instead."
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ConfigError(
            f"the GGUF file names {len(tokens) - len(vocabulary)} of its {len(tokens)} tokens twice"
        )
    merges = [_merge(text) for text in metadata["tokenizer.ggml.merges"]]
    is_llama3 = name == "llama-bpe"
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=is_llama3))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, metadata.get("tokenizer.ggml.token_type", []))
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", is_llama3):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A",
            pair=f"{tokens[bos]} $A {tokens[bos]} $B",
            special_tokens=[(tokens[bos], bos)],
        )
    return tokenizer


def _merge(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    return left, right


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    marked = [
        (token, kind)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_TokenType.CONTROL, _TokenType.USER_DEFINED)
    ]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in marked
            if kind == _TokenType.CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False)
            for token, kind in marked
            if kind == _TokenType.USER_DEFINED
        ]
    )
