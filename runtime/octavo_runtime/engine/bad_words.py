"""Bad words as token sequences: each as written and with a space before it."""

from collections.abc import Sequence

from octavo_protocol.errors import ValidationError
from octavo_protocol.limits import limit
from octavo_protocol.tokenizer import Tokenizer

MAX_SEQUENCES = limit("VLLM_MAX_NUM_BAD_WORDS", 128)
MAX_TOKENS = 1024


def bad_words_token_ids(words: Sequence[str], tokenizer: Tokenizer | None) -> list[list[int]]:
    """The distinct token sequences of `words`, which may begin a text or follow a space.

    Raises `ValidationError` when they are too many or there is no tokenizer.
    """
    if not words:
        return []
    if tokenizer is None:
        raise ValidationError(
            "bad_words needs a tokenizer, and the engine runs without one: use logit_bias",
            parameter="bad_words",
        )
    bare_words = {word.lstrip() or word: None for word in words}
    num_chars = sum(map(len, bare_words))
    if len(bare_words) > MAX_SEQUENCES or num_chars > MAX_TOKENS * tokenizer.max_token_chars:
        raise ValidationError(
            f"bad_words has {len(bare_words)} words of {num_chars} characters in all; at most "
            f"{MAX_SEQUENCES} of {MAX_TOKENS} tokens in all are taken: ban fewer words",
            parameter="bad_words",
        )
    sequences: dict[tuple[int, ...], None] = {}
    for bare in bare_words:
        for text in (bare, " " + bare):
            token_ids = tokenizer.encode(text, add_special_tokens=False)
            if token_ids:
                sequences[tuple(token_ids)] = None
    num_tokens = sum(len(sequence) for sequence in sequences)
    if len(sequences) > MAX_SEQUENCES or num_tokens > MAX_TOKENS:
        raise ValidationError(
            f"bad_words gives {len(sequences)} token sequences of {num_tokens} tokens in all (each "
            f"word counts with and without a space before it); at most {MAX_SEQUENCES} and "
            f"{MAX_TOKENS} are taken: ban fewer words",
            parameter="bad_words",
        )
    return [list(sequence) for sequence in sequences]
