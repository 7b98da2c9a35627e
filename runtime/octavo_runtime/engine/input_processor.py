"""Checks a request against the model and turns it into the engine's sequences."""

import time
from collections.abc import Sequence

import msgspec

from octavo_protocol.errors import ValidationError
from octavo_protocol.sampling_params import MAX_INT, SamplingParams
from octavo_runtime.engine.messages import EngineInfo, EngineRequest


class InputProcessor:
    """The one place where a request meets the model's limits."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def process(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        cache_salt: str = "",
    ) -> list[EngineRequest]:
        """One `EngineRequest` per sample of `params.n`. Raises `ValidationError`.

        max_tokens is cut to what the context leaves. Sample i is seeded with seed + i.
        """
        self._check_prompt(prompt_token_ids)
        self._check_stop_token_ids(params)
        room = self.info.max_model_len - len(prompt_token_ids)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
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
            )
            children.append(
                EngineRequest(
                    request_id=request_id if params.n == 1 else f"{request_id}_{i}",
                    prompt_token_ids=list(prompt_token_ids),
                    sampling=sampling,
                    arrival_time=arrival_time,
                    eos_token_id=eos,
                    priority=priority,
                    cache_salt=cache_salt,
                )
            )
        return children

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
        for token_id in (min(prompt_token_ids), max(prompt_token_ids)):
            self._check_token("prompt", token_id)

    def _check_stop_token_ids(self, params: SamplingParams) -> None:
        for token_id in params.stop_token_ids or []:
            self._check_token("stop_token_ids", token_id)

    def _check_token(self, name: str, token_id: int) -> None:
        if not 0 <= token_id < self.info.vocab_size:
            raise ValidationError(
                f"{name}: token id {token_id} is outside the vocabulary of "
                f"{self.info.vocab_size} tokens",
                parameter=name,
            )


def _sample_seed(seed: int, index: int) -> int:
    """seed + index as a 64-bit integer that is not -1, which means no seed."""
    shifted = seed + index + (1 if seed < -1 <= seed + index else 0)
    return shifted if shifted <= MAX_INT else shifted - 2**64
