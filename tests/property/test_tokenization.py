"""Whatever was tokenized before, a text has the ids that its tokenizer gives it as a whole."""

import functools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from octavo_protocol import separators, tokenization
from octavo_protocol.bounded_memo import BoundedMemo
from octavo_protocol.packed_ids import ID_BYTES, pack, unpack
from octavo_protocol.tokenization import IncrementalEncoder

_CORPUS = [
    "the quick brown fox jumps over the lazy dog's back, 123 times; isn't it?\n\n",
    "user assistant system hello  world\t今天天气很好 émigré naïve 🙂🙃",
]
_SPECIALS = ["<|im_start|>", "<|im_end|>", "</s>"]


@pytest.fixture(autouse=True, scope="module")
def short_pieces() -> Iterator[None]:
    """Pieces as short as a few characters are kept, so that short texts have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_MIN_CHARS", 1)
        patch.setattr(separators, "_MIN_CHARS", 3)
        patch.setattr(separators, "_WORDS_CHARS", 4)
        yield


def _trained(
    backend: Tokenizer, trainer: trainers.Trainer, added: list[AddedToken | str]
) -> Tokenizer:
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens([*_SPECIALS, *added])
    return backend


def _bpe_trainer() -> trainers.BpeTrainer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet)


def _prefix_space() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return _trained(backend, _bpe_trainer(), [])


def _metaspace(scheme: str) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, unk_token="<unk>")
    backend = _trained(backend, trainer, ["<s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return backend


def _llama2() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=["<unk>"])
    return _trained(backend, trainer, [AddedToken("<mask>", lstrip=True, special=True)])


def _bert() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"]
    )
    backend = _trained(backend, trainer, [AddedToken("[MASK]", lstrip=True, special=True)])
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    assert (backend.id_to_token(2), backend.id_to_token(1)) == ("[SEP]", "[CLS]")
    return backend


def _normalizing() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend = _trained(backend, _bpe_trainer(), [])
    backend.add_tokens([AddedToken("brown", normalized=True), AddedToken("é<", normalized=True)])
    return backend


def _tangled() -> Tokenizer:
    """Added tokens that are parts, beginnings and ends of each other, or take spaces with them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(
        backend,
        _bpe_trainer(),
        [
            *("<a>", "<a>b", "x<a", "|><|", "aa", "<b>"),
            AddedToken("<r>", rstrip=True, special=True),
            AddedToken("<l>", lstrip=True, special=True),
            AddedToken("<n>", normalized=True, special=True),
            AddedToken(" <w> ", special=True),
        ],
    )


def _wordy(pattern: int | None) -> Tokenizer:
    """With added tokens that are words, or take the space before them."""
    backend = Tokenizer(models.BPE())
    steps: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(False)]
    if pattern is not None:
        regex = Regex(separators._KNOWN_PATTERNS[pattern])
        split = pre_tokenizers.Split(regex, "isolated")
        steps = [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    if pattern == 1:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend = _trained(backend, _bpe_trainer(), [AddedToken("world", lstrip=True, special=True)])
    backend.add_tokens(["brown", "ello"])
    assert separators._is_wordy(backend)
    return backend


def _single_word() -> Tokenizer:
    backend = _prefix_space()
    backend.add_tokens([AddedToken("hello", single_word=True)])
    return backend


_MADE: dict[str, Callable[[], Tokenizer]] = {
    "byte-level with a space before": _prefix_space,
    "metaspace before the first": lambda: _metaspace("first"),
    "metaspace before all": lambda: _metaspace("always"),
    "no metaspace before": lambda: _metaspace("never"),
    "Llama 2": _llama2,
    "BERT": _bert,
    "normalizing": _normalizing,
    "tangled": _tangled,
    "GPT-2": lambda: _wordy(None),
    "Llama 3": lambda: _wordy(0),
    "Qwen 2": lambda: _wordy(1),
    "single words": _single_word,
}
_PARTS = st.sampled_from(
    [
        *("Hello world", "it's the quick", "don't", "x y", "a b c", "fox's", " 's", "ello"),
        *_SPECIALS,
        *("<s>", "[SEP]", "[MASK]", "<mask>", "<a>", "<a>b", "x<a", "|><|", "<b>", "<r>", "<l>"),
        *("<n>", " <w> ", "a", "b", " ", "  ", "\n", "\t", "user\n", "hello", " world", "brown"),
        *(
            "<",
            "|>",
            "im_end",
            "<|im_",
            "e",
            "\u0301",
            "é",
            "今天",
            "🙂",
            "👩‍🚀",
            "123",
            "isn't",
            ".",
        ),
    ]
)
_TEXTS = st.lists(_PARTS | st.text(max_size=3), max_size=30).map("".join)


@functools.cache
def _made(name: str) -> tuple[Tokenizer, IncrementalEncoder]:
    backend = _MADE[name]()
    return backend, IncrementalEncoder(backend, BoundedMemo(2**20), name)


@pytest.mark.parametrize(
    "name", [name for name in _MADE if name not in ("single words", "tangled")]
)
def test_only_what_is_new_is_tokenized(name: str) -> None:
    _, encoder = _made(name)
    known, new = f"<|im_start|>{name}<|im_end|>", "quick</s>"
    encoder.begin(known, add_special_tokens=False).packed()
    for text in (known + new, f"<|im_start|>{new}{name}<|im_end|>"):
        assert encoder.begin(text, add_special_tokens=False).num_new_chars <= len(text) / 2


@pytest.mark.parametrize("name", ["GPT-2", "Llama 3", "Qwen 2"])
def test_plain_texts_are_cut_between_words(name: str) -> None:
    _, encoder = _made(name)
    known = f"plain words of {name} that go on for a while"
    encoder.begin(known, add_special_tokens=False).packed()
    begun = encoder.begin(known + " and then some more", add_special_tokens=False)
    assert begun.num_known_chars > len(known) / 2


@pytest.mark.parametrize(
    "step",
    [
        None,
        pre_tokenizers.Digits(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Sequence([]),
        pre_tokenizers.Sequence([pre_tokenizers.Digits()]),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)]),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\s+"), "isolated"), pre_tokenizers.ByteLevel(False)]
        ),
    ],
)
def test_tokenizers_of_other_patterns_are_not_cut_between_words(
    step: pre_tokenizers.PreTokenizer | None,
) -> None:
    backend = Tokenizer(models.BPE())
    if step is not None:
        backend.pre_tokenizer = step
    encoder = IncrementalEncoder(backend, BoundedMemo(2**20))
    assert len(encoder.begin("some plain words " * 9, add_special_tokens=False).segments) == 1


def test_what_one_salt_keeps_no_other_finds() -> None:
    """Else the time that a prompt takes would tell a tenant what another one has sent."""
    _, encoder = _made("BERT")
    text = "<|im_start|>a secret of somebody<|im_end|>and more</s>"

    def num_new(salt: str) -> int:
        begun = encoder.begin(text, add_special_tokens=False, cache_salt=salt)
        begun.packed()
        return begun.num_new_chars

    new = [num_new(salt) for salt in ("one", "other", "0:", "one")]
    assert new == [len(text), len(text), len(text), 0]


def _check(backend: Tokenizer, encoder: IncrementalEncoder, text: str, is_framed: bool) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    expected = backend.encode(text, add_special_tokens=is_framed).ids
    assert encoder.begin(text, add_special_tokens=is_framed).token_ids() == expected


@pytest.mark.parametrize("name", _MADE)
@given(text=_TEXTS, is_framed=st.booleans())
@settings(max_examples=150)
def test_ids_are_those_of_the_whole_text(name: str, text: str, is_framed: bool) -> None:
    _check(*_made(name), text, is_framed)


@pytest.mark.parametrize("name", [*_MADE])
@given(turns=st.lists(_TEXTS, min_size=1, max_size=4), edit=_TEXTS, seed=st.integers(0, 999))
@settings(max_examples=40)
def test_ids_of_texts_that_grow_or_were_edited_are_too(
    name: str, turns: list[str], edit: str, seed: int
) -> None:
    backend, encoder = _made(name)
    text = ""
    for turn in turns:
        text += f"<|im_start|>{turn}<|im_end|>"
        _check(backend, encoder, text, is_framed=False)
    at = random.Random(seed).randrange(len(text) + 1)
    _check(backend, encoder, text[:at] + edit + text[at:], is_framed=False)


@pytest.mark.model
@given(turns=st.lists(_TEXTS, min_size=1, max_size=6), edit=_TEXTS, seed=st.integers(0, 999))
@settings(max_examples=150)
def test_a_real_tokenizer_does_too(smollm2: Path, turns: list[str], edit: str, seed: int) -> None:
    backend, encoder = _real(smollm2)
    text = ""
    for turn in turns:
        text += f"<|im_start|>user\n{turn}<|im_end|>\n"
        _check(backend, encoder, text + "<|im_start|>assistant\n", is_framed=True)
    at = random.Random(seed).randrange(len(text) + 1)
    _check(backend, encoder, text[:at] + edit + text[at:], is_framed=True)


@functools.cache
def _real(folder: Path) -> tuple[Tokenizer, IncrementalEncoder]:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return backend, IncrementalEncoder(backend, BoundedMemo(2**20))


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_packed_ids_are_read_back(token_ids: list[int]) -> None:
    assert unpack(pack(token_ids)) == token_ids
    assert len(pack(token_ids)) == ID_BYTES * len(token_ids)
