"""Beam search over an engine that generates one token at a time. Decides; runs nothing itself.

    search = BeamSearch(prompt_token_ids, params, eos_token_ids, max_model_len=...)
    while prompts := search.next_prompts():
        outputs = ...  # each prompt with search.sampling_params
        search.advance([logprobs of the one generated token, for each prompt])
    best = search.result()

In each step every live beam is continued by its 2 * width most likely tokens. A continuation by an
end token completes a hypothesis; of the others the best `width` live on. Scores are
log-probability / (generated tokens ** length_penalty), where a final end token counts as generated.
The search ends after max_tokens tokens, and the best `width` of completed and live beams win.

That is Hugging Face's `generate(num_beams=width, early_stopping="never", length_penalty=...)`, but
for one rule: there an end token completes a hypothesis only where that continuation is among the
best `width` of its step; here, as in vLLM, wherever it is among the best 2 * width of its beam.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo_protocol.beam_search import BeamSearchParams, BeamSearchSequence
from octavo_protocol.errors import ValidationError
from octavo_protocol.outputs import Logprob
from octavo_protocol.sampling_params import MAX_LOGPROB_TOKEN_IDS, SamplingParams


@dataclass(frozen=True, slots=True)
class _Beam:
    """tokens: the generated ones, with one entry of logprobs for each. eos: what completed it."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[dict[int, Logprob], ...] = ()
    cum_logprob: float = 0.0
    eos: int | None = None

    def score(self, length_penalty: float) -> float:
        return float(self.cum_logprob / max(1, len(self.tokens)) ** length_penalty)


class BeamSearch:
    """The state of one prompt's search.

    eos_token_ids: tokens that end an output. max_model_len: prompt and output never exceed it.
    Raises `ValidationError` for parameters that cannot be honoured.
    """

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        params: BeamSearchParams,
        eos_token_ids: Sequence[int],
        *,
        max_model_len: int,
    ) -> None:
        self.params = params
        self.sampling_params = step_params(params)
        self._prompt = list(prompt_token_ids)
        self._eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._num_left = min(params.max_tokens, max_model_len - len(self._prompt))
        self._live = [_Beam()]
        self._completed: list[_Beam] = []

    def next_prompts(self) -> list[list[int]]:
        """Token ids of the prompts to run next, one per live beam; none when the search is over."""
        if self._num_left <= 0:
            return []
        return [[*self._prompt, *beam.tokens] for beam in self._live]

    def advance(self, logprobs: Sequence[Mapping[int, Logprob]]) -> None:
        """Takes the log-probabilities of the token after each of `next_prompts`, in that order."""
        live: list[_Beam] = []
        for beam, entry in zip(self._live, logprobs, strict=True):
            row = dict(entry)
            for token_id in self._candidates(row):
                following = _Beam(
                    (*beam.tokens, token_id),
                    (*beam.logprobs, row),
                    beam.cum_logprob + row[token_id].logprob,
                    token_id if token_id in self._eos else None,
                )
                (live if following.eos is None else self._completed).append(following)
        live.sort(key=lambda beam: beam.cum_logprob, reverse=True)
        self._live = live[: self.params.beam_width]
        self._completed = self._best(self._completed)
        self._num_left = self._num_left - 1 if self._live else 0

    def result(self) -> list[BeamSearchSequence]:
        """The best `beam_width` beams, best first; without their texts."""
        return [self._sequence(beam) for beam in self._best([*self._completed, *self._live])]

    def _candidates(self, entry: Mapping[int, Logprob]) -> list[int]:
        """The best tokens that are allowed: a sampled one may be in the entry beside them."""
        allowed = self.params.allowed_token_ids
        token_ids = [each for each in entry if allowed is None or each in allowed]
        token_ids.sort(key=lambda token_id: entry[token_id].logprob, reverse=True)
        return token_ids[: 2 * self.params.beam_width]

    def _best(self, beams: list[_Beam]) -> list[_Beam]:
        penalty = self.params.length_penalty
        ranked = sorted(beams, key=lambda beam: beam.score(penalty), reverse=True)
        return ranked[: self.params.beam_width]

    def _sequence(self, beam: _Beam) -> BeamSearchSequence:
        tokens = list(beam.tokens)
        if beam.eos is not None and not self.params.include_stop_str_in_output:
            tokens.pop()
        return BeamSearchSequence(
            tokens=[*self._prompt, *tokens],
            logprobs=list(beam.logprobs),
            cum_logprob=beam.cum_logprob,
            finish_reason="length" if beam.eos is None else "stop",
            stop_reason=beam.eos,
        )


def step_params(params: BeamSearchParams) -> SamplingParams:
    """How each step's prompts are sampled. Raises `ValidationError`.

    With allowed tokens exactly their log-probabilities are asked for, as they are without them.
    """
    if params.structured_outputs is not None:
        raise ValidationError(
            "beam search takes no structured_outputs: leave them out, or sample",
            parameter="structured_outputs",
        )
    allowed = params.allowed_token_ids
    if allowed is not None and len(allowed) > MAX_LOGPROB_TOKEN_IDS:
        raise ValidationError(
            f"beam search takes at most {MAX_LOGPROB_TOKEN_IDS} allowed_token_ids, got "
            f"{len(allowed)}",
            parameter="allowed_token_ids",
        )
    return SamplingParams(
        max_tokens=1,
        temperature=params.temperature,
        ignore_eos=True,
        detokenize=False,
        logprobs=None if allowed else 2 * params.beam_width,
        logprob_token_ids=allowed,
        allowed_token_ids=allowed,
    )
