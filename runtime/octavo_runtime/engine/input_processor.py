"""Checks a request against the model and turns it into the engine's sequences."""

import time
from collections.abc import Iterable, Sequence

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.sampling_params import MAX_INT, SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.engine.bad_words import bad_words_token_ids
from octavo_runtime.engine.messages import EngineInfo, EngineRequest
from octavo_runtime.engine.output_so_far import OutputSoFar
from octavo_runtime.engine.request_checks import check_id_and_priority, check_token_ids
from octavo_runtime.layers.sampling.processors import load_processor_classes


class InputProcessor:
    """The one place where a request meets the model's limits.

    tokenizer: for `bad_words`; a request with bad words is refused without it.
    logits_processors: `module:Class` of the engine's processors, which may refuse requests.
    """

    def __init__(
        self,
        info: EngineInfo,
        tokenizer: Tokenizer | None = None,
        *,
        logits_processors: Sequence[str] = (),
    ) -> None:
        self.info = info
        self._tokenizer = tokenizer
        self._processors = load_processor_classes(logits_processors)

    def process(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
        shared_prefix: SharedPrefix | None = None,
        grammar: str = "",
        reasoning_end_token_ids: Sequence[int] = (),
        is_reasoning: bool = False,
        so_far: Sequence[OutputSoFar] = (),
    ) -> list[EngineRequest]:
        """One `EngineRequest` per sample of `params.n`. Raises `ValidationError` or TypeError.

        max_tokens is cut to what the context leaves. Sample i is seeded with seed + i; only the
        first one scores the prompt, which is the same for all.
        shared_prefix, grammar, reasoning_end_token_ids, is_reasoning: see `EngineRequest`. so_far:
        of each sample, where it was begun elsewhere.
        """
        check_id_and_priority(request_id, priority)
        self._check_prompt(prompt_token_ids)
        self._check_token_ids(params)
        self._check_logprobs(params)
        self._check_by_processors(params)
        if params.thinking_token_budget is not None and not reasoning_end_token_ids:
            raise ValidationError(
                "thinking_token_budget needs a model that reasons and a reasoning parser that "
                "knows how reasoning ends (--reasoning-parser): leave it out",
                parameter="thinking_token_budget",
            )
        bad_words = bad_words_token_ids(params.bad_words or [], self._tokenizer)
        for word in bad_words:
            self._check_tokens("bad_words", word)
        room = self.info.max_model_len - len(prompt_token_ids)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self._check_so_far(so_far, params.n, max_tokens)
        eos = self.info.eos_token_ids[0] if self.info.eos_token_ids else None
        more_eos = self.info.eos_token_ids[1:]
        stop_token_ids = list(params.stop_token_ids or [])
        if not params.ignore_eos:
            stop_token_ids += [t for t in more_eos if t not in stop_token_ids]
        arrival_time = time.time()
        children = []
        for i in range(params.n):
            sampling = msgspec.structs.replace(
                params,
                n=1,
                seed=None if params.seed is None else _sample_seed(params.seed, i),
                max_tokens=max_tokens,
                min_tokens=min(params.min_tokens, max_tokens),
                stop_token_ids=stop_token_ids,
                prompt_logprobs=params.prompt_logprobs if i == 0 else None,
                skip_reading_prefix_cache=(
                    params.skip_reading_prefix_cache
                    if i == 0 or params.prompt_logprobs is None
                    else False
                ),
            )
            children.append(
                EngineRequest(
                    request_id=request_id if params.n == 1 else f"{request_id}_{i}",
                    prompt_token_ids=list(prompt_token_ids),
                    sampling=sampling,
                    arrival_time=arrival_time,
                    eos_token_id=eos,
                    bad_words_token_ids=bad_words,
                    grammar=grammar,
                    reasoning_end_token_ids=list(reasoning_end_token_ids),
                    is_reasoning=is_reasoning,
                    output_token_ids=list(so_far[i].token_ids) if so_far else [],
                    priority=priority,
                    cache_salt=cache_salt,
                    shared_prefix=shared_prefix,
                )
            )
        return children

    def _check_so_far(self, so_far: Sequence[OutputSoFar], n: int, max_tokens: int) -> None:
        if so_far and len(so_far) != n:
            raise ValidationError(f"the trace tells of {len(so_far)} samples, the request of {n}")
        for each in so_far:
            self._check_tokens("trace", each.token_ids)
            limit = max_tokens - (each.finish_reason is None)
            if len(each.token_ids) > limit:
                raise ValidationError(
                    f"the trace has {len(each.token_ids)} tokens of a sample; at most {limit} leave"
                    " something to continue",
                    parameter="trace",
                )

    def _check_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        if not prompt_token_ids:
            raise ValidationError("prompt cannot be empty", parameter="prompt")
        limit, length = self.info.max_model_len, len(prompt_token_ids)
        if length >= limit:
            raise ValidationError(
                f"the prompt has {length} tokens; this model's context is {limit} tokens and at "
                f"least one must be left for the output: shorten the prompt to {limit - 1}",
                parameter="prompt",
                code="context_length_exceeded",
            )
        self._check_tokens("prompt", (min(prompt_token_ids), max(prompt_token_ids)))

    def _check_token_ids(self, params: SamplingParams) -> None:
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids", "logprob_token_ids"):
            token_ids = getattr(params, name) or ()
            if len(token_ids) > self.info.vocab_size:
                raise ValidationError(
                    f"{name} has {len(token_ids)} token ids, more than the vocabulary "
                    f"({self.info.vocab_size})",
                    parameter=name,
                )
            self._check_tokens(name, token_ids)
        if params.prompt_logprob_token_ids is not None:
            raise ValidationError(
                "prompt_logprob_token_ids is not supported by Octavo: use prompt_logprobs",
                parameter="prompt_logprob_token_ids",
            )

    def _check_logprobs(self, params: SamplingParams) -> None:
        limit = self.info.max_logprobs
        if limit == -1:
            return
        wanted = {"prompt_logprobs": params.prompt_logprobs}
        if params.logprob_token_ids is None:  # those have a limit of their own
            wanted["logprobs"] = params.logprobs
        for name, count in wanted.items():
            asked = self.info.vocab_size if count == -1 else count or 0
            if asked > limit:
                raise ValidationError(
                    f"{name} asks for {asked} log-probabilities per token; at most {limit} are "
                    "given (--max-logprobs; -1 for no limit)",
                    parameter=name,
                )

    def _check_by_processors(self, params: SamplingParams) -> None:
        for processor in self._processors:
            validate = getattr(processor, "validate_params", None)
            try:
                if validate is not None:
                    validate(params)
            except ValueError as error:
                raise ValidationError(str(error), parameter="extra_args") from error

    def _check_tokens(self, name: str, token_ids: Iterable[int]) -> None:
        check_token_ids(name, token_ids, self.info.vocab_size)


def _sample_seed(seed: int, index: int) -> int:
    """seed + index as a 64-bit integer that is not -1, which means no seed."""
    shifted = seed + index + (1 if seed < -1 <= seed + index else 0)
    return shifted if shifted <= MAX_INT else shifted - 2**64
