"""What a benchmark sends: prompts with the number of tokens to generate, alike for every seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from octavo_protocol.tokenizer import Tokenizer

FIRST_TOKEN_ID = 1000  # below it lie special tokens and single bytes
Assignment = Literal["random", "round-robin"]


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One prompt as token ids, and how many tokens to generate.

    text: the same prompt as text, where there is one. arrival_s: when it is sent, in seconds from
    the start, where the workload is a trace. adapter: that is asked in place of the model.
    """

    prompt_token_ids: list[int]
    output_len: int
    text: str | None = None
    arrival_s: float | None = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class RandomWorkload:
    """Lengths are uniform within [low, high], in tokens. All prompts begin with one random prefix
    of `prefix_len` tokens, on top of their own length.
    """

    num_prompts: int
    input_len: tuple[int, int]
    output_len: tuple[int, int]
    prefix_len: int = 0
    seed: int = 0

    def requests(self, vocab_size: int) -> list[BenchRequest]:
        rng = random.Random(self.seed)
        prefix = random_tokens(rng, self.prefix_len, vocab_size)
        return [
            BenchRequest(
                prefix + random_tokens(rng, rng.randint(*self.input_len), vocab_size),
                rng.randint(*self.output_len),
            )
            for _ in range(self.num_prompts)
        ]


@dataclass(frozen=True, slots=True)
class PrefixRepetitionWorkload:
    """Prompts that share `num_prefixes` prefixes, in random order. Lengths in tokens."""

    num_prompts: int
    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128
    seed: int = 0

    def requests(self, vocab_size: int) -> list[BenchRequest]:
        rng = random.Random(self.seed)
        prefixes = [
            random_tokens(rng, self.prefix_len, vocab_size) for _ in range(self.num_prefixes)
        ]
        order = [prefixes[i % len(prefixes)] for i in range(self.num_prompts)]
        rng.shuffle(order)
        return [
            BenchRequest(prefix + random_tokens(rng, self.suffix_len, vocab_size), self.output_len)
            for prefix in order
        ]


def with_adapters(
    requests: Sequence[BenchRequest], names: Sequence[str], assignment: Assignment, seed: int
) -> list[BenchRequest]:
    """Each request asks one of the adapters; all stay as they are where there is none."""
    if not names:
        return list(requests)
    rng = random.Random(seed)
    return [
        replace(
            request,
            adapter=rng.choice(names) if assignment == "random" else names[index % len(names)],
        )
        for index, request in enumerate(requests)
    ]


def random_tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """`count` ids of ordinary tokens."""
    first = min(FIRST_TOKEN_ID, vocab_size // 2)
    return [rng.randrange(first, vocab_size) for _ in range(count)]


def as_text(token_ids: Sequence[int], tokenizer: Tokenizer | None) -> str:
    """Text of about as many tokens; without a tokenizer, as many short words."""
    if tokenizer is not None:
        return tokenizer.decode(token_ids)
    return " ".join(_WORDS[token_id % len(_WORDS)] for token_id in token_ids)


_WORDS = (
    *("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by"),
    *("on", "not", "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an"),
)
