"""The engine of a replica that pools: schedule → launch → read, in one thread.

Where the device overlaps steps, the next one is planned and launched before the last is read:
no step needs what the one before it gave.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from octavo_kernels.allocator import tune_allocator
from octavo_protocol.errors import ClientError, ConfigError
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.background_pace import BackgroundPace
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.core_adapters import adapter_names
from octavo_runtime.engine.core_base import EngineCoreBase
from octavo_runtime.engine.failures import kind_of
from octavo_runtime.engine.kv_capacity import max_model_len_limit, num_kv_blocks
from octavo_runtime.engine.messages import (
    EngineStats,
    PoolingInfo,
    PoolingRequest,
    PoolingResult,
    StepOutputs,
)
from octavo_runtime.engine.pooling_scheduler import (
    Chunk,
    PoolingScheduler,
    PoolingSchedulerConfig,
)
from octavo_runtime.engine.start_up import timed
from octavo_runtime.engine.step_rates import StepRates
from octavo_runtime.engine.wakeup import Wakeup
from octavo_runtime.model_config import ModelConfig, cache_identity, kv_identity
from octavo_runtime.models.pooling_config import read_pooling_config
from octavo_runtime.models.runner_type import RunnerChoice, resolve_runner
from octavo_runtime.pooling import TOKEN_TASKS, PoolingConfig
from octavo_runtime.worker.device import resolve_config
from octavo_runtime.worker.encoder_limits import with_encoder_limits
from octavo_runtime.worker.pooling_runner import PoolingRunner, PoolingWork, RunningPoolingStep
from octavo_runtime.worker.step_input import StepSequence


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that the device computes. started: when the device could begin, perf_counter."""

    chunks: list[Chunk]
    step: RunningPoolingStep
    started: float


class PoolingCore(EngineCoreBase[PoolingRequest]):
    """Loads the model and then does one step per call. Not thread-safe.

    Raises `ConfigError` when the model, its files, the settings and the memory do not fit together.
    """

    def __init__(self, config: EngineConfig) -> None:
        tune_allocator()
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        model_config = ModelConfig.from_folder(config.model, config.hf_overrides)
        choice = resolve_runner(replace(config, runner="pooling"), model_config.architecture)
        self._pooling = read_pooling_config(config, model_config, choice)
        max_model_len = _max_model_len(config, model_config, self._pooling)
        if choice.is_encoder and config.lora is not None:
            raise ConfigError(
                f"{model_config.architecture} is an encoder: adapters are served of decoders only. "
                "Start without enable_lora (--enable-lora), or merge the adapter into the model"
            )
        if config.tensor_parallel_size > 1:
            raise ConfigError(
                f"tensor_parallel_size is {config.tensor_parallel_size}, but models that pool run "
                "on one device: set it to 1, and start more replicas"
            )
        if choice.is_encoder:
            config = with_encoder_limits(config, max_model_len)
        resolved = resolve_config(config)
        self._runner = PoolingRunner(resolved, model_config, self._pooling, max_model_len)
        super().__init__(config, self._runner)
        stages = self._runner.stages
        num_blocks = 0
        if not choice.is_encoder:
            with timed(stages, "profile"):
                num_blocks = num_kv_blocks(
                    resolved,
                    self._runner.kv_block_bytes,
                    max_model_len,
                    self._runner.kv_memory_bytes,
                )
            if config.max_model_len == -1:
                max_model_len = min(max_model_len, num_blocks * config.block_size)
            with timed(stages, "kv_cache"):
                self._runner.allocate_kv_cache(num_blocks)
        cache_model = config.cache_model or cache_identity(config.model, config.hf_overrides)
        cache_model = kv_identity(cache_model, self._runner.kv_dtype)
        self.scheduler = PoolingScheduler(
            PoolingSchedulerConfig(
                max_num_seqs=resolved.max_num_seqs,
                max_num_batched_tokens=resolved.max_num_batched_tokens,
                block_size=config.block_size,
                policy=config.scheduling_policy,
                max_chunk=config.long_prefill_token_threshold,
                cache_model=cache_model,
                max_loras=config.lora.max_loras if config.lora is not None else 0,
            ),
            BlockPool(num_blocks, enable_prefix_caching=config.enable_prefix_caching)
            if num_blocks
            else None,
        )
        with timed(stages, "warm_up"):
            self._runner.warm_up(max_model_len)
        self._wakeup = Wakeup()
        self._make_room_for_adapters(
            config.lora, self._runner, self.scheduler.turns.slots, self._wakeup
        )
        self.info = self._described(
            config,
            model_config,
            cache_model=cache_model,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            max_num_seqs=resolved.max_num_seqs,
            pooling=_pooling_info(self._pooling, model_config, choice),
        )
        self._launched: deque[_Launched] = deque()
        self._notices: list[PoolingResult] = []  # results of no step, or of one that was waited for
        self._rates = StepRates()
        self._background_pace = BackgroundPace()
        self._num_steps = 0
        self._last_step_ended = 0.0  # perf_counter

    @property
    def runner(self) -> PoolingRunner:
        return self._runner

    @property
    def wakeup(self) -> Wakeup:
        """Signals that work has come up by itself: an adapter is loaded."""
        return self._wakeup

    def add_request(self, request: PoolingRequest) -> None:
        if self._is_draining:
            self._held.append(request)
            return
        try:
            self._begin(request.request_id, request.adapter)
        except ClientError as error:
            failed = PoolingResult(
                request.request_id,
                finish_reason="error",
                error=error.message,
                error_kind=kind_of(error),
            )
            self._notices.append(failed)
            return
        self.scheduler.add(request, reads_prefix_cache=self._reads_prefix_cache(request))

    def abort(self, request_ids: Iterable[str]) -> None:
        ids = set(request_ids)
        self.scheduler.abort(ids)
        for launched in self._launched:
            for chunk in launched.chunks:
                chunk.prompt.is_aborted |= chunk.prompt.request_id in ids
        self._held = [request for request in self._held if request.request_id not in ids]
        self._end(ids)

    def has_work(self) -> bool:
        """A step would do something now."""
        can_run = self.scheduler.has_work or bool(self._launched)
        has_news = bool(self._notices) or self._has_loaded
        return has_news or (can_run and not self._sleep.is_asleep)

    def step(self) -> StepOutputs:
        """One step; the results that are new. Without work: only the state."""
        results, self._notices = self._notices, []
        self._settle_loads()
        if not self._sleep.is_asleep:
            now = time.monotonic()
            chunks = self.scheduler.schedule(now, self._background_budget(now))
            if chunks:
                self._launched.append(self._launch(chunks))
            results += self._finish_steps(keep=1 if chunks and self._runner.overlaps else 0)
        self._end(result.request_id for result in results)
        pool = self.scheduler.pool
        events = [] if pool is None else pool.take_events()
        return StepOutputs(kv_events=events, stats=self._stats(), pooled=results)

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while prompts are in the middle of their chunks.

        reset_running_requests: those give their blocks up and begin again.
        """
        self._settle()
        if reset_running_requests:
            self.scheduler.preempt_all()
        pool = self.scheduler.pool
        return pool is None or pool.reset_prefix_cache()

    def shutdown(self) -> None:
        self._finish_steps()
        super().shutdown()

    def _settle(self) -> None:
        self._notices += self._finish_steps()

    def _end_all(self) -> None:
        known = {result.request_id for result in self._notices}
        self._notices += [
            PoolingResult(request_id, finish_reason="abort")
            for request_id in self._unfinished
            if request_id not in known
        ]

    def _forget_cache(self) -> None:
        self.reset_prefix_cache(reset_running_requests=True)

    def _background_budget(self, now: float) -> int | None:
        return self._background_pace.budget(
            now,
            has_foreground=self.scheduler.has_foreground,
            tokens_per_s=self._rates.prefill_tokens_per_s,
        )

    def _reads_prefix_cache(self, request: PoolingRequest) -> bool:
        """Whether the last token's hidden state is all that is needed."""
        params = request.params
        is_of_last = params.task not in TOKEN_TASKS and self._pooling.seq_pooling_type == "LAST"
        return is_of_last and not params.skip_reading_prefix_cache

    def _launch(self, chunks: list[Chunk]) -> _Launched:
        started = time.perf_counter()
        self._put_adapters(self.scheduler.turns.slots.take_changes())
        works = [_work(chunk) for chunk in chunks]
        return _Launched(
            chunks, self._runner.launch(works, self.scheduler.take_released()), started
        )

    def _finish_steps(self, keep: int = 0) -> list[PoolingResult]:
        """The results of all launched steps but the last `keep`, which go on."""
        results = []
        while len(self._launched) > keep:
            launched = self._launched.popleft()
            pooled = launched.step.result()
            for chunk in launched.chunks:
                prompt = chunk.prompt
                if not chunk.is_last or prompt.is_aborted:
                    continue
                shape, data = pooled[prompt.request_id]
                results.append(
                    PoolingResult(
                        prompt.request_id,
                        data,
                        shape,
                        num_cached_tokens=prompt.num_cached_tokens or 0,
                        scheduled_ts=prompt.scheduled_ts,
                    )
                )
            self._count(launched)
        return results

    def _count(self, launched: _Launched) -> None:
        ended = time.perf_counter()
        num_tokens = sum(chunk.num_tokens for chunk in launched.chunks)
        self._num_steps += 1
        self._rates.add(
            num_tokens,
            0,
            ended - max(launched.started, self._last_step_ended),
            has_background=any(chunk.prompt.is_background for chunk in launched.chunks),
        )
        self._last_step_ended = ended

    def _stats(self) -> EngineStats:
        scheduler, pool = self.scheduler, self.scheduler.pool
        in_flight = sum(chunk.is_last for each in self._launched for chunk in each.chunks)
        return EngineStats(
            running=len(scheduler.running) + in_flight,
            waiting=len(scheduler.waiting) + len(self._held),
            waiting_tokens=scheduler.num_uncomputed_tokens,
            background_running=scheduler.num_background_running,
            background_waiting=scheduler.waiting.num_background,
            background_waiting_tokens=scheduler.num_background_uncomputed_tokens,
            kv_usage=0.0 if pool is None else 1 - pool.num_free / pool.num_blocks,
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            preemptions_total=scheduler.num_preemptions,
            prefix_queried_tokens_total=scheduler.num_queried_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
            steps_total=self._num_steps,
            sleep_level=self._sleep.level,
            running_adapters=adapter_names(scheduler.turns.slots.held),
            waiting_adapters=adapter_names(scheduler.waiting.adapters),
        )


def _work(chunk: Chunk) -> PoolingWork:
    prompt, request = chunk.prompt, chunk.prompt.request
    stop = chunk.start + chunk.num_tokens
    return PoolingWork(
        StepSequence(
            request.prompt_token_ids[chunk.start : stop],
            chunk.start,
            chunk.block_table,
            prompt.num_shared_tokens,
            request.request_id,
            lora_slot=chunk.lora_slot,
        ),
        request.prompt_token_ids,
        request.params,
        chunk.is_last,
        request.token_type_ids[chunk.start : stop],
    )


def _max_model_len(config: EngineConfig, model_config: ModelConfig, pooling: PoolingConfig) -> int:
    """As the settings say, else what the model was trained for."""
    limit = max_model_len_limit(config, model_config)
    if config.max_model_len in (None, -1) and pooling.max_model_len is not None:
        return min(limit, pooling.max_model_len)
    return limit


def _pooling_info(
    pooling: PoolingConfig, model_config: ModelConfig, choice: RunnerChoice
) -> PoolingInfo:
    return PoolingInfo(
        tasks=list(pooling.tasks),
        is_encoder=choice.is_encoder,
        num_token_types=model_config.encoder.type_vocab_size if model_config.encoder else 1,
        embedding_size=pooling.embedding_size,
        dimensions=pooling.dimensions,
        matryoshka=pooling.matryoshka,
        matryoshka_dimensions=list(pooling.matryoshka_dimensions),
        labels=list(pooling.labels),
        prompts=dict(pooling.prompts),
    )
