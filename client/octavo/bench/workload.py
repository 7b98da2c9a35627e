"""Synthetic requests: random token ids of random lengths, alike for everyone who has the seed."""

import random
from dataclasses import dataclass

FIRST_TOKEN_ID = 1000  # below it lie special tokens and single bytes


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One prompt as token ids, and how many tokens to generate (end tokens are ignored)."""

    prompt_token_ids: list[int]
    output_len: int


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

        def tokens(count: int) -> list[int]:
            return [
                rng.randrange(min(FIRST_TOKEN_ID, vocab_size // 2), vocab_size)
                for _ in range(count)
            ]

        prefix = tokens(self.prefix_len)
        return [
            BenchRequest(
                prefix + tokens(rng.randint(*self.input_len)), rng.randint(*self.output_len)
            )
            for _ in range(self.num_prompts)
        ]
