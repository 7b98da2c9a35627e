"""What a generation request returns. Field names and meanings are vLLM's."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    # Known by name, for what Octavo does not do.
    routed_experts: Any = None
    sampling_mask: Any = None
    spec_decode_metrics: Any = None
    weight_versions: Any = None

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


@dataclass(slots=True, init=False)
class RequestOutput:
    """The state of one request: its prompt and its `n` outputs.

    prompt_logprobs: one entry per prompt token when asked for; the first is None.
    num_cached_tokens: prompt tokens that the prefix cache supplied.
    Those from num_cache_creation_tokens on are known by name, for what Octavo does not do.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestStateStats | None
    lora_request: Any
    encoder_prompt: str | None
    encoder_prompt_token_ids: list[int] | None
    num_cached_tokens: int | None
    num_cache_creation_tokens: int | None
    kv_transfer_params: dict[str, Any] | None
    ec_transfer_params: dict[str, Any] | None
    prompt_token_id_logprobs: Any

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int] | None,
        prompt_logprobs: PromptLogprobs | None = None,
        outputs: list[CompletionOutput] | None = None,
        finished: bool = False,
        metrics: RequestStateStats | None = None,
        lora_request: Any = None,
        encoder_prompt: str | None = None,
        encoder_prompt_token_ids: list[int] | None = None,
        num_cached_tokens: int | None = None,
        *,
        num_cache_creation_tokens: int | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
        ec_transfer_params: dict[str, Any] | None = None,
        prompt_token_id_logprobs: Any = None,
        **_: Any,  # fields of other versions
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.prompt_logprobs = prompt_logprobs
        self.outputs = [] if outputs is None else outputs
        self.finished = finished
        self.metrics = metrics
        self.lora_request = lora_request
        self.encoder_prompt = encoder_prompt
        self.encoder_prompt_token_ids = encoder_prompt_token_ids
        self.num_cached_tokens = num_cached_tokens
        self.num_cache_creation_tokens = num_cache_creation_tokens
        self.kv_transfer_params = kv_transfer_params
        self.ec_transfer_params = ec_transfer_params
        self.prompt_token_id_logprobs = prompt_token_id_logprobs
