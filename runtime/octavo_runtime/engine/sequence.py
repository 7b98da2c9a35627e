"""One token stream of a request, as the scheduler sees it.

    token_ids  | prompt ............................ | output ............. |
    positions  0            num_computed_tokens                    num_tokens
               | KV written | next chunk of this sequence ......... |

A sequence knows no phases: whenever `num_computed_tokens < num_tokens` there is work, and the step
that computes the last known token samples the next one. Resumption after preemption is the same,
and so is going on with what another replica began.
"""

from enum import StrEnum

from octavo_protocol.hashing import block_hashes
from octavo_protocol.priorities import is_background
from octavo_runtime.engine.messages import EngineRequest
from octavo_runtime.engine.repetition import ends_in_repetition
from octavo_runtime.layers.sampling.rows import SamplingRow, is_plain


class SequenceStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """State of one sequence. Only the scheduler changes it; the model runner reads it.

    order: position in arrival order, which preemption keeps.
    num_pending_tokens: tokens after `token_ids` that a running step samples; they count in
    `num_tokens`.
    num_shared_tokens: leading tokens whose KV is in blocks that others own; never written.
    num_cached_tokens: prompt tokens supplied by the prefix cache at the first admission.
    num_scored_tokens: prompt tokens whose log-probabilities were given out, or never will be asked
    for; the first has none.
    needs_known_tokens: it can be sampled only where all of its tokens are known.
    scheduled_ts: when it was first admitted, by the caller's clock.
    lora_slot: of its adapter while it runs; -1: none.
    is_background: it runs on what other requests leave, and makes room for them.
    sampling_row: what the sampler keeps of this sequence; made when it is first sampled.
    """

    __slots__ = (
        "block_hashes",
        "block_table",
        "extra",
        "is_background",
        "lora_slot",
        "needs_known_tokens",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_pending_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_registered_blocks",
        "num_scored_tokens",
        "num_shared_tokens",
        "order",
        "request",
        "sampling_row",
        "scheduled_ts",
        "status",
        "token_ids",
    )

    def __init__(self, request: EngineRequest, order: int, extra: bytes) -> None:
        self.request = request
        self.is_background = is_background(request.priority)
        self.order = order
        self.extra = extra
        self.status = SequenceStatus.WAITING
        self.needs_known_tokens = request.grammar != "" or not is_plain(request.sampling)
        self.token_ids = [*request.prompt_token_ids, *request.output_token_ids]
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0
        self.num_shared_tokens = 0
        self.num_cached_tokens: int | None = None
        self.num_preemptions = 0
        self.scheduled_ts = 0.0
        self.lora_slot = -1
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []
        self.num_scored_tokens = 1 if self.wants_prompt_logprobs else self.num_prompt_tokens
        self.sampling_row: SamplingRow | None = None
        self.num_registered_blocks = 0  # leading blocks whose hash the pool knows

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None

    @property
    def reads_prefix_cache(self) -> bool:
        """Cached tokens pass through no layer, so they have no log-probabilities."""
        return not (self.request.sampling.skip_reading_prefix_cache or self.wants_prompt_logprobs)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_output_tokens(self) -> int:
        """Pending ones counted."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def extend_hashes(self, block_size: int) -> list[bytes]:
        """Hashes of all full blocks of the known tokens."""
        self.block_hashes = block_hashes(
            self.token_ids, block_size, self.extra, known=self.block_hashes
        )
        return self.block_hashes

    def has_all_tokens(self, max_model_len: int) -> bool:
        """With its pending tokens it ends at a limit, whatever they are."""
        max_tokens = self.request.sampling.max_tokens
        is_at_limit = max_tokens is not None and self.num_output_tokens >= max_tokens
        return self.num_pending_tokens > 0 and (is_at_limit or self.num_tokens >= max_model_len)

    def finish_reason(self, max_model_len: int) -> tuple[str | None, int | None]:
        """(finish_reason, stop_reason) after the newest known token; (None, None): it goes on."""
        params = self.request.sampling
        newest = self.token_ids[-1]
        num_output_tokens = len(self.token_ids) - self.num_prompt_tokens
        if num_output_tokens >= params.min_tokens:
            if newest == self.request.eos_token_id and not params.ignore_eos:
                return "stop", None
            if newest in (params.stop_token_ids or ()):
                return "stop", newest
        max_tokens = params.max_tokens
        if max_tokens is not None and num_output_tokens >= max_tokens:
            return "length", None
        if len(self.token_ids) >= max_model_len:
            return "length", None
        detection = params.repetition_detection
        if (
            detection is not None
            and num_output_tokens >= params.min_tokens
            and ends_in_repetition(self.token_ids, self.num_prompt_tokens, detection)
        ):
            return "repetition", None
        return None, None
