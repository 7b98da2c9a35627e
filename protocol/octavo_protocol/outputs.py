"""What a generation request returns. Field names and meanings are vLLM's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token, before temperature and penalties. `rank` is 1 for the best."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


SampleLogprobs = list[dict[int, Logprob]]
PromptLogprobs = list[dict[int, Logprob] | None]


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` sequences of a request.

    `finish_reason` is None while running, else "stop", "length", "repetition" or "abort".
    `stop_reason` is the stop string or stop token id that matched; None for the model's
    end-of-sequence token.
    `logprobs[i]` maps token id to `Logprob` at output position i; the sampled token is always in.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: Any = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestStateStats:
    """Times of one request in seconds (monotonic, but `arrival_time`: Unix)."""

    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    num_generation_tokens: int = 0
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: its prompt and its `n` outputs.

    prompt_logprobs: one entry per prompt token when asked for; the first is None.
    num_cached_tokens: prompt tokens that the prefix cache supplied.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestStateStats | None = None
    num_cached_tokens: int | None = None
    prompt_logprobs: "PromptLogprobs | None" = None
    lora_request: Any = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cache_creation_tokens: int | None = None
    kv_transfer_params: dict[str, Any] | None = None
