"""An engine core without a model: the real scheduler and block pool, and tokens that echo.

Token i of an answer is token i of the prompt, from the start again when it ends. Environment
variables, read when the core is made:

    OCTAVO_FAKE_STEP_S    seconds that a step takes (default 0)
    OCTAVO_FAKE_START_S   seconds that the start takes (default 0)
    OCTAVO_FAKE_FAILURE   message of a `ConfigError` at the start

A request whose cache salt is REFUSED is not accepted; one with FATAL makes the next step fail.
"""

import json
import os
import time
from collections.abc import Iterable

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.messages import (
    EngineInfo,
    EngineRequest,
    EngineStats,
    StepOutputs,
    TokenLogprobs,
)
from octavo_runtime.engine.scheduler import SampledToken, Scheduler, SchedulerConfig
from octavo_runtime.engine.sequence import Sequence
from octavo_runtime.engine.wakeup import Wakeup

REFUSED, FATAL = "refused", "fatal"


class FakeEngineCore:
    """Same interface as `EngineCore`. `num_aborted` counts ids given to `abort`."""

    def __init__(self, config: EngineConfig) -> None:
        if failure := os.environ.get("OCTAVO_FAKE_FAILURE"):
            raise ConfigError(failure)
        time.sleep(float(os.environ.get("OCTAVO_FAKE_START_S", "0")))
        self._step_s = float(os.environ.get("OCTAVO_FAKE_STEP_S", "0"))
        raw = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
        limit = config.max_model_len or int(raw["max_position_embeddings"])
        blocks_per_sequence = -(-limit // config.block_size)
        max_num_seqs = config.max_num_seqs or 64
        num_blocks = config.num_gpu_blocks_override or max_num_seqs * blocks_per_sequence
        self.info = EngineInfo(
            model=str(config.model),
            cache_model=config.cache_model or f"{config.model.name}@fake",
            dtype="float32",
            block_size=config.block_size,
            num_blocks=num_blocks,
            max_model_len=limit,
            max_num_seqs=max_num_seqs,
            vocab_size=int(raw["vocab_size"]),
            eos_token_ids=[int(raw["eos_token_id"])],
            stages={"load": 0.0},
        )
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens or 512,
                max_model_len=limit,
                block_size=config.block_size,
                policy=config.scheduling_policy,
                long_prefill_token_threshold=config.long_prefill_token_threshold,
                cache_model=self.info.cache_model,
            ),
            BlockPool(num_blocks, enable_prefix_caching=config.enable_prefix_caching),
        )
        self.wakeup = Wakeup()
        self.num_aborted = 0
        self._num_steps = 0
        self._is_broken = False

    def add_request(self, request: EngineRequest) -> None:
        if request.cache_salt == REFUSED:
            raise ValueError("the fake engine refuses this request")
        self._is_broken = self._is_broken or request.cache_salt == FATAL
        self.scheduler.add(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        ids = list(request_ids)
        self.num_aborted += len(ids)
        self.scheduler.abort(ids)

    def has_work(self) -> bool:
        return self.scheduler.has_work

    def spare_s(self) -> float:
        return 0.0

    def step(self) -> StepOutputs:
        if not self.has_work():
            return StepOutputs([], self.scheduler.pool.take_events(), self._stats())
        if self._is_broken:
            raise RuntimeError("the fake engine's step fails")
        time.sleep(self._step_s)
        plan = self.scheduler.schedule()
        sampled = {
            item.sequence.request_id: _echo(item.sequence, self.info.vocab_size)
            for item in plan.scheduled
            if item.samples
        }
        outputs = self.scheduler.update(plan, sampled)
        self._num_steps += 1
        return StepOutputs(outputs, self.scheduler.pool.take_events(), self._stats())

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        if reset_running_requests:
            self.scheduler.preempt_all()
        return self.scheduler.pool.reset_prefix_cache()

    def shutdown(self) -> None:
        self.scheduler.check()

    def _stats(self) -> EngineStats:
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.num_uncomputed_tokens,
            kv_usage=1 - pool.num_free / pool.num_blocks,
            preemptions_total=scheduler.num_preemptions,
            prefix_queried_tokens_total=scheduler.num_queried_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
            steps_total=self._num_steps,
        )


def _echo(sequence: Sequence, vocab_size: int) -> SampledToken:
    """The sampled token has log-probability -0.5; each of the top ones half a unit less."""
    prompt, params = sequence.request.prompt_token_ids, sequence.request.sampling
    token = prompt[(sequence.num_output_tokens - 1) % len(prompt)]  # one is pending
    if params.logprobs is None:
        return SampledToken(token)
    top = [(token + i) % vocab_size for i in range(params.logprobs)]
    values = [-0.5 - 0.5 * i for i in range(params.logprobs)]
    return SampledToken(token, TokenLogprobs([token, *top], [-0.5, *values], 1))
