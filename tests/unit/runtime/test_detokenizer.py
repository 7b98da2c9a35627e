"""Streamed text equals the text decoded at once; stop strings never take back what was shown."""

from collections.abc import Sequence
from typing import Any

import tokenizers
import tokenizers.models
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fakes.tiny_model import END, VOCAB_SIZE, tiny_tokenizer

from octavo_protocol.tokenizer import Tokenizer, TokenizerBundle
from octavo_runtime.engine.detokenizer import REPLACEMENT, IncrementalDetokenizer, StopStrings

TOKENIZER = tiny_tokenizer()
TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("🙂👩🏽‍🚀🇫🇷é́\u0301\u200d\ufffd今天气日本\x00\x1b\n\t аبن"),
    ),
    max_size=60,
)
TOKEN_IDS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=80)
# How many tokens come in each step; the rest comes with the last one.
SIZES = st.lists(st.integers(0, 5), max_size=40)


def pieces_of(
    token_ids: Sequence[int],
    sizes: Sequence[int],
    *,
    tokenizer: Tokenizer = TOKENIZER,
    **options: Any,
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, **options)
    pieces, done = [], 0
    for size in sizes:
        pieces.append(detokenizer.append(token_ids[done : done + size]))
        done += size
    pieces.append(detokenizer.append(token_ids[done:]))
    pieces.append(detokenizer.flush())
    return pieces


def byte_tokens(raw: bytes) -> list[int]:
    """One token per byte, merges left out."""
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in themselves]
    names = {value: chr(value) for value in themselves}
    names |= {value: chr(256 + rank) for rank, value in enumerate(others)}
    vocabulary = TOKENIZER.backend.get_vocab()
    return [vocabulary[names[value]] for value in raw]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, sizes=SIZES)
def test_pieces_of_any_text_join_to_the_text(text: str, sizes: list[int]) -> None:
    token_ids = TOKENIZER.encode(text)

    assert "".join(pieces_of(token_ids, sizes)) == TOKENIZER.decode(token_ids) == text


@settings(max_examples=300, deadline=None)
@given(token_ids=TOKEN_IDS, sizes=SIZES)
def test_pieces_of_any_tokens_join_to_their_text(token_ids: list[int], sizes: list[int]) -> None:
    assert "".join(pieces_of(token_ids, sizes)) == TOKENIZER.decode(token_ids)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=200))
@example(raw=b"\x80" * 63 + "今".encode())
@example(raw=b"\x80" * 64 + "今".encode())
@example(raw=b"\x80" * 62 + "🙂".encode() + b"\x80" * 100)
def test_bytes_that_are_no_utf8_join_to_their_text(raw: bytes) -> None:
    pieces = pieces_of(byte_tokens(raw), [1] * len(raw))

    assert "".join(pieces) == TOKENIZER.decode(byte_tokens(raw)) == raw.decode(errors="replace")


@given(token_ids=TOKEN_IDS, sizes=SIZES)
def test_special_tokens_can_be_kept(token_ids: list[int], sizes: list[int]) -> None:
    whole = TOKENIZER.decode(token_ids, skip_special_tokens=False)

    assert "".join(pieces_of(token_ids, sizes, skip_special_tokens=False)) == whole


def test_special_token_gives_no_text_unless_asked_for() -> None:
    token_ids = TOKENIZER.encode(f"the{END}")

    assert "".join(pieces_of(token_ids, [])) == "the"
    assert "".join(pieces_of(token_ids, [], skip_special_tokens=False)) == f"the{END}"


@settings(max_examples=300, deadline=None)
@given(token_ids=TOKEN_IDS, ends=st.sets(st.integers(0, 79), max_size=6), sizes=SIZES)
def test_visible_special_tokens_stand_between_the_texts_of_the_others(
    token_ids: list[int], ends: set[int], sizes: list[int]
) -> None:
    end = TOKENIZER.eos_token_id
    assert end is not None
    token_ids = [end if place in ends else token for place, token in enumerate(token_ids)]
    parts: list[list[int]] = [[]]
    for token_id in token_ids:
        if token_id == end:
            parts.append([])
        else:
            parts[-1].append(token_id)

    pieces = pieces_of(token_ids, sizes, visible_special_ids=frozenset({end}))

    assert "".join(pieces) == END.join(TOKENIZER.decode(part) for part in parts)


def word_tokenizer() -> Tokenizer:
    """Whole words, which its decoder joins with spaces; <a> and <b> are special."""
    words = ["one", "two", "three"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="one")
    )
    backend.add_special_tokens(["<a>", "<b>"])
    return Tokenizer(TokenizerBundle(backend.to_str()))


def test_spaces_between_special_tokens_can_be_left_out() -> None:
    options: dict[str, Any] = {"tokenizer": word_tokenizer(), "skip_special_tokens": False}
    token_ids = [0, 3, 4, 4, 1, 2, 3]

    loose = "".join(pieces_of(token_ids, [1] * 7, **options))
    tight = "".join(pieces_of(token_ids, [1] * 7, spaces_between_special_tokens=False, **options))

    assert loose == "one <a> <b> <b> two three <a>"
    assert tight == "one <a><b><b> two three <a>"


def test_a_word_after_a_visible_special_token_keeps_its_space() -> None:
    pieces = pieces_of(
        [0, 3, 1, 4], [1] * 4, tokenizer=word_tokenizer(), visible_special_ids=frozenset({3})
    )

    assert "".join(pieces) == "one<a> two"


def test_unfinished_character_waits_for_its_last_byte() -> None:
    token_ids = byte_tokens("a🙂".encode())

    assert pieces_of(token_ids, [1] * 5) == ["a", "", "", "", "🙂", "", ""]


def test_flush_shows_an_unfinished_character_as_replacement() -> None:
    token_ids = byte_tokens("a🙂".encode()[:-1])

    assert pieces_of(token_ids, [1] * 4) == ["a", "", "", "", "", REPLACEMENT]


def test_endless_invalid_bytes_are_streamed_before_the_end() -> None:
    """Held back for ever they would be a stream that shows nothing."""
    detokenizer = IncrementalDetokenizer(TOKENIZER)
    shown = [detokenizer.append([token]) for token in byte_tokens(b"\x80" * 300)]

    assert len("".join(shown)) >= 200


# -- stop strings ---------------------------------------------------------------------------------


def stream(
    pieces: Sequence[str], strings: Sequence[str], *, include: bool = False
) -> tuple[list[str], str | None]:
    """What is shown after each piece, as the output processor does it, and the string that hit."""
    stop = StopStrings(strings, include=include)
    text, shown, steps = "", 0, []
    for piece in pieces:
        text += piece
        match = stop.find(text, len(piece)) if piece else None
        if match is not None:
            text = text[: match.cut]
            steps.append(text[shown:])
            assert len(text) >= shown, "text was taken back"
            return steps, match.string
        safe = max(shown, stop.num_safe_chars(text))
        steps.append(text[shown:safe])
        shown = safe
    steps.append(text[shown:])
    return steps, None


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    strings=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3, unique=True),
    include=st.booleans(),
)
def test_first_match_to_complete_ends_the_text_and_nothing_is_taken_back(
    pieces: list[str], strings: list[str], include: bool
) -> None:
    shown, hit = stream(pieces, strings, include=include)

    text = "".join(pieces)
    matches = sorted(
        (start + len(string), start, string)
        for string in strings
        for start in range(len(text))
        if text.startswith(string, start)
    )
    if not matches:
        assert (hit, "".join(shown)) == (None, text)
        return
    end, start, string = matches[0]
    assert (hit, "".join(shown)) == (string, text[: end if include else start])


def test_stop_string_may_straddle_pieces() -> None:
    assert stream(["one ST", "O", "P two"], ["STOP"]) == (["one", " ", ""], "STOP")


def test_text_that_only_began_like_a_stop_string_is_shown_later() -> None:
    assert stream(["a ST", "AR"], ["STOP"]) == (["a", " S", "TAR"], None)


def test_stop_string_stays_in_the_text_when_asked_for() -> None:
    shown, hit = stream(["one STO", "P two"], ["STOP"], include=True)

    assert (hit, "".join(shown)) == ("STOP", "one STOP")


def test_earliest_completing_match_wins_over_the_earliest_beginning() -> None:
    assert stream(["abcd"], ["abcd", "bc"]) == (["a"], "bc")


def test_longest_of_matches_with_the_same_end_wins() -> None:
    assert stream(["xabc"], ["bc", "abc"]) == (["x"], "abc")


def test_match_that_lies_wholly_before_the_new_text_does_not_count() -> None:
    """It was there while min_tokens was not reached; a longer string in the list is no reason."""
    stop = StopStrings(["b", "a long one"], include=False)

    assert stop.find("abc", 1) is None
    assert stop.find("abcb", 1) is not None


def test_without_stop_strings_all_text_is_safe() -> None:
    stop = StopStrings([], include=False)

    assert stop.num_safe_chars("abc") == 3
    assert stop.find("abc", 3) is None
