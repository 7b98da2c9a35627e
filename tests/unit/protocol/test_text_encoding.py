"""Texts and pairs are encoded and truncated as transformers does it, by the same tokenizer."""

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from octavo_protocol.errors import ValidationError
from octavo_protocol.text_encoding import EncodedPrompt, Truncation, encode_pair, encode_texts
from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle

_WORDS = ["red", "green", "blue", "cat", "dog", "sun"]


def _backend() -> tokenizers.Tokenizer:
    """Words, with BERT's frame: [CLS] first [SEP], and for pairs second [SEP] of type 1."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return backend


TOKENIZER = Tokenizer(TokenizerBundle(_backend().to_str()))
texts = st.lists(st.sampled_from([*_WORDS, "?"]), max_size=8).map(" ".join)
pairs = st.tuples(texts, texts.filter(bool))  # transformers takes an empty second text for none
sides = st.sampled_from(["left", "right"])


def reference(side: str) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(),
        truncation_side=side,
        model_input_names=["input_ids", "token_type_ids"],
    )


@given(texts, st.integers(2, 12), sides, st.booleans())
def test_a_truncated_text_is_that_of_transformers(
    text: str, limit: int, side: Any, add_special_tokens: bool
) -> None:
    expected = reference(side)(
        text, truncation=True, max_length=limit, add_special_tokens=add_special_tokens
    )

    [ids] = encode_texts(
        TOKENIZER, [text], Truncation(limit, side), add_special_tokens=add_special_tokens
    )

    assert ids == expected["input_ids"]


@given(pairs, st.integers(3, 16), sides)
def test_a_truncated_pair_is_that_of_transformers(
    texts: tuple[str, str], limit: int, side: Any
) -> None:
    expected = reference(side)(*texts, truncation=True, max_length=limit)

    pair = encode_pair(TOKENIZER, *texts, Truncation(limit, side))

    assert pair.token_ids == expected["input_ids"]
    assert pair.token_type_ids == expected["token_type_ids"]


def test_each_text_of_a_pair_has_a_limit_of_its_own() -> None:
    pair = encode_pair(TOKENIZER, "red cat dog", "sun sun sun", max_first=1, max_second=2)

    assert pair == EncodedPrompt([2, 4, 3, 9, 9, 3], [0, 0, 0, 1, 1, 1])


def test_texts_are_encoded_in_their_order() -> None:
    assert encode_texts(TOKENIZER, ["red", "cat dog", ""]) == [[2, 4, 3], [2, 7, 8, 3], [2, 3]]


def test_token_ids_lose_one_end() -> None:
    assert Truncation(2).tokens([1, 2, 3]) == [1, 2]
    assert Truncation(2, "left").tokens([1, 2, 3]) == [2, 3]
    assert Truncation(3).tokens([1, 2, 3]) == [1, 2, 3]
    assert Truncation().tokens([1, 2, 3]) == [1, 2, 3]


def test_a_limit_without_room_for_special_tokens_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        encode_texts(TOKENIZER, ["red cat"], Truncation(1))
    with pytest.raises(ValidationError, match="at least 3"):
        encode_pair(TOKENIZER, "red", "cat", Truncation(2))


def test_what_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValidationError, match="Unicode"):
        encode_texts(TOKENIZER, ["\ud800"])
    with pytest.raises(ValidationError, match="Unicode"):
        encode_pair(TOKENIZER, "red", "\ud800")
