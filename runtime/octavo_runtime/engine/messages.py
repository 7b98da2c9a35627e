"""What passes between the API side and the engine; msgpack when they are two processes.

Down (`Command`): requests, aborts, control. Up (`Report`): `EngineInfo` once, when the engine is
ready, or `StartFailed`; then a `StepOutputs` per step, and answers to control commands.
"""

from typing import Any, Literal

import msgspec

from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.pooling import PoolingParams
from octavo_protocol.records import KVEvent
from octavo_protocol.sampling_params import SamplingParams


class EngineRequest(msgspec.Struct, omit_defaults=True):
    """One sequence to generate. `n > 1` arrives here as n requests (the API side fans out).

    eos_token_id: the model's primary end-of-sequence token; extra end tokens of its generation
    config are already among `sampling.stop_token_ids`. max_tokens is already resolved.
    bad_words_token_ids: `sampling.bad_words` as token sequences.
    grammar: `sampling.structured_outputs` as the structured-outputs library takes it; empty: free
    text. is_reasoning: the output begins with reasoning, which lasts until
    `reasoning_end_token_ids` were generated and to which the grammar does not apply; where no such
    tokens are given, it applies from the start. output_token_ids: what was generated elsewhere
    already; the sequence goes on from there. adapter: `LoRAAdapter.identity`; empty: none.
    shared_prefix: if the prompt begins with it, that much is cached beyond `cache_salt`.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    eos_token_id: int | None = None
    bad_words_token_ids: list[list[int]] = []
    grammar: str = ""
    reasoning_end_token_ids: list[int] = []
    is_reasoning: bool = False
    output_token_ids: list[int] = []
    priority: int = 0
    adapter: str = ""
    cache_salt: str = ""
    shared_prefix: SharedPrefix | None = None


class PoolingRequest(msgspec.Struct, omit_defaults=True):
    """One prompt to pool. `params` are complete: `task` is set, and fits the model.

    token_type_ids: of each token, where the prompt has two parts; empty: all 0.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: PoolingParams
    arrival_time: float
    token_type_ids: list[int] = []
    priority: int = 0
    adapter: str = ""
    cache_salt: str = ""


class AddRequest(msgspec.Struct, tag="add"):
    request: EngineRequest


class AddPoolingRequest(msgspec.Struct, tag="add_pooling"):
    request: PoolingRequest


class AbortRequests(msgspec.Struct, tag="abort"):
    """Unknown and finished ids are ignored. No output follows for the aborted ones."""

    request_ids: list[str]


class Control(msgspec.Struct, tag="control"):
    """Calls a method of the engine between two steps; answered by a `ControlResult`."""

    call_id: int
    method: str
    arguments: dict[str, Any] = {}


class Shutdown(msgspec.Struct, tag="shutdown"):
    pass


Command = AddRequest | AddPoolingRequest | AbortRequests | Control | Shutdown


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Log-probabilities at one output position: the sampled token first, then the top ones.

    token_ids and logprobs: [1 + num_logprobs]; sampled_rank: 1 = the sampled token is the best.
    ranks: of all entries; None where those after the first are ranked 1, 2, 3, …
    """

    token_ids: list[int]
    logprobs: list[float]
    sampled_rank: int
    ranks: list[int] | None = None


class SequenceOutput(msgspec.Struct, omit_defaults=True):
    """New tokens of one request in one step.

    finish_reason: "stop" | "length" | "repetition" | "abort" | "error" | None. stop_reason: the
    stop token id that ended it (None for the primary end-of-sequence token). The token that stopped
    it is in `new_token_ids`.
    num_cached_tokens: prompt tokens that the prefix cache supplied at first admission.
    scheduled_ts: when it was first admitted (monotonic clock, the same in all processes).
    error: why it ended with "error"; error_kind: see `engine/failures.py`.
    new_prompt_logprobs: of the next prompt tokens, in order, from the second token on; outputs in
    the middle of a prompt carry them without new tokens.
    """

    request_id: str
    new_token_ids: list[int]
    new_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    scheduled_ts: float = 0.0
    error: str = ""
    error_kind: str = ""
    new_prompt_logprobs: list[TokenLogprobs] | None = None


class PoolingResult(msgspec.Struct, omit_defaults=True):
    """The end of one pooling request.

    data: the tensor's values, little-endian fp32, row by row; shape: its sizes.
    finish_reason: "stop" | "abort" | "error"; then there are no data. error, error_kind: why.
    num_cached_tokens, scheduled_ts: as in `SequenceOutput`.
    """

    request_id: str
    data: bytes = b""
    shape: list[int] = []
    finish_reason: str = "stop"
    num_cached_tokens: int = 0
    scheduled_ts: float = 0.0
    error: str = ""
    error_kind: str = ""


class EngineStats(msgspec.Struct, omit_defaults=True, frozen=True):
    """State after a step. Rates are tokens per second over recent steps; 0 = not yet known.

    waiting_tokens: prompt tokens of waiting and running requests that are not yet computed.
    background_*: the part of background requests in the three before, which others pass.
    sleep_level: None = awake; see `engine/sleep.py`. The `*_total` counters only grow.
    running_adapters, waiting_adapters: names of the adapters of running and of waiting requests.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    background_running: int = 0
    background_waiting: int = 0
    background_waiting_tokens: int = 0
    kv_usage: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    preemptions_total: int = 0
    prefix_queried_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    steps_total: int = 0
    sleep_level: int | None = None
    running_adapters: list[str] = []
    waiting_adapters: list[str] = []


class StepOutputs(msgspec.Struct, omit_defaults=True, tag="step"):
    outputs: list[SequenceOutput] = []
    kv_events: list[KVEvent] = []
    stats: EngineStats = EngineStats()
    pooled: list[PoolingResult] = []


class PoolingInfo(msgspec.Struct, omit_defaults=True):
    """What a pooling model gives. Fields as in `octavo_runtime.pooling.PoolingConfig`.

    is_encoder: whole prompts at a time, no KV cache. num_token_types: token_type_ids are below.
    """

    tasks: list[str]
    is_encoder: bool
    num_token_types: int = 1
    embedding_size: int = 0
    dimensions: int | None = None
    matryoshka: bool = False
    matryoshka_dimensions: list[int] = []
    labels: list[str] = []
    prompts: dict[str, str] = {}

    @property
    def task(self) -> str:
        """The default one."""
        return self.tasks[0]

    @property
    def scoring(self) -> Literal["cross-encoder", "bi-encoder", "late-interaction"] | None:
        """How pairs are scored; None: classes are no scores."""
        if self.task == "classify":
            return "cross-encoder" if len(self.labels) == 1 else None
        by_task: dict[str, Literal["bi-encoder", "late-interaction"]] = {
            "embed": "bi-encoder",
            "token_embed": "late-interaction",
        }
        return by_task.get(self.task)


class LoRAInfo(msgspec.Struct):
    """Room for adapters: in one step, in host memory, and the largest rank."""

    max_loras: int
    max_cpu_loras: int
    max_lora_rank: int


class EngineInfo(msgspec.Struct, tag="info"):
    """What the engine resolved its configuration to.

    stages: seconds of start-up by stage; one begins where the other ends. num_graphs: CUDA graphs.
    num_blocks: 0 where there is no KV cache. pooling: None of a model that generates. lora: None
    where requests with an adapter are refused.
    """

    model: str
    cache_model: str
    dtype: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    eos_token_ids: list[int]
    stages: dict[str, float]
    max_logprobs: int = 20
    enable_prefix_caching: bool = True
    num_graphs: int = 0
    pooling: PoolingInfo | None = None
    lora: LoRAInfo | None = None

    @property
    def runner_type(self) -> Literal["generate", "pooling"]:
        return "generate" if self.pooling is None else "pooling"

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        return ("generate",) if self.pooling is None else tuple(self.pooling.tasks)


class StartFailed(msgspec.Struct, tag="start_failed"):
    """The engine cannot start; `is_config` when the user's settings or files are the cause."""

    message: str
    is_config: bool


class ControlResult(msgspec.Struct, tag="control_result"):
    """error: why the call failed; None when it did not. error_kind: see `engine/failures.py`."""

    call_id: int
    value: Any = None
    error: str | None = None
    error_kind: str = ""


Report = EngineInfo | StartFailed | StepOutputs | ControlResult
