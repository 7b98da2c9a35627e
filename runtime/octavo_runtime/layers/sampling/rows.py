"""What the sampler knows of one sequence, kept from step to step.

A row is made once and then takes one token at a time, so a step costs nothing that grows with the
prompt's length. It survives preemption: a resumed sequence continues with the same row. No torch
here, since the scheduler's sequences hold their rows.
"""

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from octavo_protocol.sampling_params import SamplingParams
from octavo_runtime.layers.sampling.thinking import ThinkingBudget

MAX_PLAIN_LOGPROBS = 32


class TokenHistory:
    """The distinct tokens of a sequence, and how often each was generated.

    Tokens of the prompt count 0 until they are generated.
    """

    __slots__ = ("_counts", "_index", "_token_ids")

    def __init__(self, prompt_token_ids: Seq[int]) -> None:
        self._token_ids = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
        self._counts = np.zeros(len(self._token_ids), dtype=np.float32)
        self._index = {token: place for place, token in enumerate(self._token_ids.tolist())}

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """[num_distinct], in no particular order."""
        return self._token_ids[: len(self._index)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """[num_distinct]: occurrences of each among the generated tokens."""
        return self._counts[: len(self._index)]

    def add(self, token_id: int) -> None:
        """Counts a generated token."""
        place = self._index.setdefault(token_id, len(self._index))
        if place == len(self._token_ids):
            room = max(64, len(self._token_ids))
            self._token_ids = np.concatenate([self._token_ids, np.zeros(room, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._token_ids[place] = token_id
        self._counts[place] += 1


class SamplingRow:
    """How to sample one sequence, and the tokens that it generated.

    seed: of the request, or drawn at its admission.
    end_token_ids: what `min_tokens` forbids while too few tokens were generated.
    bad_words: token sequences; the last token of one is forbidden where the others stand at the
    end of the generated tokens.
    history: the tokens that penalties look at; None where there is no penalty.
    allowed: [num_allowed] or None. bias_ids, bias_values: [num_biases].
    """

    __slots__ = (
        "allowed",
        "bad_words",
        "bias_ids",
        "bias_values",
        "end_token_ids",
        "history",
        "output_token_ids",
        "params",
        "prompt_token_ids",
        "seed",
        "thinking",
    )

    def __init__(
        self,
        params: SamplingParams,
        *,
        seed: int = 0,
        prompt_token_ids: Seq[int] = (),
        end_token_ids: Seq[int] = (),
        bad_words: Seq[Seq[int]] = (),
        thinking: ThinkingBudget | None = None,
    ) -> None:
        self.params = params
        self.seed = seed
        self.prompt_token_ids = prompt_token_ids
        self.end_token_ids = list(end_token_ids)
        self.bad_words = [list(word) for word in bad_words]
        self.thinking = thinking
        self.output_token_ids: list[int] = []
        self.history = _history(params, prompt_token_ids)
        allowed, bias = params.allowed_token_ids, params.logit_bias or {}
        self.allowed = None if allowed is None else np.array(allowed, dtype=np.int64)
        self.bias_ids = np.array(list(bias), dtype=np.int64)
        self.bias_values = np.array(list(bias.values()), dtype=np.float32)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    @property
    def wanted_logprobs(self) -> int | list[int] | None:
        """A number of best tokens (-1: all), or exactly these tokens; None: no log-probabilities.

        The sampled token comes with either.
        """
        if self.params.logprob_token_ids is not None:
            return self.params.logprob_token_ids
        return self.params.logprobs

    def append(self, token_id: int) -> None:
        """Takes the token that was sampled."""
        self.output_token_ids.append(token_id)
        if self.history is not None:
            self.history.add(token_id)
        if self.thinking is not None:
            self.thinking.append(token_id)

    def banned_token_ids(self) -> list[int]:
        """Tokens that may not come next: ends of bad words, and end tokens before `min_tokens`."""
        generated = self.output_token_ids
        banned = [
            word[-1]
            for word in self.bad_words
            if len(word) == 1
            or (len(word) <= len(generated) + 1 and generated[1 - len(word) :] == word[:-1])
        ]
        if len(generated) < self.params.min_tokens:
            banned += self.end_token_ids
        return banned


def is_plain(params: SamplingParams) -> bool:
    """The row is sampled by temperature, top-k, top-p and min-p alone, with few log-probabilities.

    Then the logits and its output position say all about it: no token that it generated does.
    """
    return (
        params.repetition_penalty == 1.0
        and params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and not params.bad_words
        and not params.logit_bias
        and params.allowed_token_ids is None
        and params.min_tokens == 0
        and params.thinking_token_budget is None
        and params.logprob_token_ids is None
        and (params.logprobs is None or 0 <= params.logprobs <= MAX_PLAIN_LOGPROBS)
    )


def _history(params: SamplingParams, prompt_token_ids: Seq[int]) -> TokenHistory | None:
    if params.repetition_penalty != 1.0:
        return TokenHistory(prompt_token_ids)
    if params.frequency_penalty != 0.0 or params.presence_penalty != 0.0:
        return TokenHistory(())
    return None
