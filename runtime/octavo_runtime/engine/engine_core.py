"""The engine of one replica: schedule → launch → update, in one thread.

Where the device overlaps steps, the next one is planned and launched before the tokens of the last
are known, so that the device never waits for the host:

    device   | step 1        | step 2        | step 3
    host     plan 2, launch 2  tokens of 1, plan 3, launch 3  tokens of 2, …

Where sampling needs to know all tokens (a grammar, penalties, …), each step is waited for. A caller
that gets requests at any time asks `spare_s` how long it may wait for more before the next step.
"""

import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch

from octavo_kernels.allocator import tune_allocator
from octavo_protocol.errors import ClientError, GenerationError
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.background_pace import BackgroundPace
from octavo_runtime.engine.block_pool import BlockPool
from octavo_runtime.engine.core_adapters import adapter_names
from octavo_runtime.engine.core_base import EngineCoreBase
from octavo_runtime.engine.failures import kind_of
from octavo_runtime.engine.kv_capacity import max_model_len_limit, num_kv_blocks
from octavo_runtime.engine.launch_timing import LaunchTiming, StepShape
from octavo_runtime.engine.messages import (
    EngineRequest,
    EngineStats,
    SequenceOutput,
    StepOutputs,
)
from octavo_runtime.engine.sampling_rows import (
    prompt_parts,
    sampled_token,
    sampling_row,
    token_logprobs,
)
from octavo_runtime.engine.scheduler import (
    ScheduledSequence,
    Scheduler,
    SchedulerConfig,
    StepPlan,
)
from octavo_runtime.engine.start_up import timed
from octavo_runtime.engine.step_rates import StepRates
from octavo_runtime.engine.wakeup import Wakeup
from octavo_runtime.model_config import ModelConfig, cache_identity, kv_identity
from octavo_runtime.structured_outputs.sequence_grammars import SequenceGrammars
from octavo_runtime.worker.device import new_model_runner, resolve_config
from octavo_runtime.worker.model_runner import RunningStep, SampleWork
from octavo_runtime.worker.served_model import StepRunner
from octavo_runtime.worker.step_input import StepSequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that the device computes. started: when the device could begin, perf_counter."""

    plan: StepPlan
    step: RunningStep
    started: float


class EngineCore(EngineCoreBase[EngineRequest]):
    """Loads the model and then does one step per call. Not thread-safe.

    Raises `ConfigError` when the model, the context length and the memory do not fit together.
    """

    def __init__(self, config: EngineConfig) -> None:
        tune_allocator()
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        model_config = ModelConfig.from_folder(config.model, config.hf_overrides)
        max_model_len = max_model_len_limit(config, model_config)
        resolved = resolve_config(config)
        self._runner = new_model_runner(resolved, model_config, max_model_len)
        super().__init__(config, self._runner)
        stages = self._runner.stages
        with timed(stages, "profile"):
            num_blocks = num_kv_blocks(
                resolved, self._runner.kv_block_bytes, max_model_len, self._runner.kv_memory_bytes
            )
        if config.max_model_len == -1:
            max_model_len = min(max_model_len, num_blocks * config.block_size)
        with timed(stages, "kv_cache"):
            self._runner.allocate_kv_cache(num_blocks)
        cache_model = config.cache_model or cache_identity(config.model, config.hf_overrides)
        cache_model = kv_identity(cache_model, self._runner.kv_dtype)
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=resolved.max_num_seqs,
                max_num_batched_tokens=resolved.max_num_batched_tokens,
                max_model_len=max_model_len,
                block_size=config.block_size,
                policy=config.scheduling_policy,
                long_prefill_token_threshold=config.long_prefill_token_threshold,
                cache_model=cache_model,
                max_loras=config.lora.max_loras if config.lora is not None else 0,
            ),
            BlockPool(num_blocks, enable_prefix_caching=config.enable_prefix_caching),
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
            num_graphs=self._runner.num_graphs,
        )
        self._launched: deque[_Launched] = deque()
        self._rates = StepRates()
        self._background_pace = BackgroundPace()
        self._timing = LaunchTiming()
        self._takes_more = True  # the last step left nobody waiting, and places free
        self._num_steps = 0
        self._last_step_ended = 0.0  # perf_counter
        self._grammars = SequenceGrammars(
            (config.tokenizer or config.model) / "tokenizer.json",
            model_config.vocab_size,
            model_config.eos_token_ids,
            num_threads=torch.get_num_threads(),
            on_ready=self._wakeup.set,
        )
        self._notices: list[SequenceOutput] = []  # ends that no step has brought about

    @property
    def runner(self) -> StepRunner:
        return self._runner

    @property
    def wakeup(self) -> Wakeup:
        """Signals that work has come up by itself: a grammar is compiled, an adapter is loaded."""
        return self._wakeup

    def add_request(self, request: EngineRequest) -> None:
        """Queues a request that the API side has validated against `info`."""
        if request.sampling.seed is None and not request.sampling.is_greedy:
            request.sampling.seed = secrets.randbits(63)
        if self._is_draining:
            self._held.append(request)
            return
        try:
            self._begin(request.request_id, request.adapter)
            if request.grammar:
                self._grammars.add(request)
            else:
                self.scheduler.add(request)
        except ClientError as error:
            failed = SequenceOutput(
                request.request_id,
                [],
                finish_reason="error",
                error=error.message,
                error_kind=kind_of(error),
            )
            self._notices.append(failed)
        except Exception:
            self._end([request.request_id])
            raise

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks at once. Unknown ids are ignored."""
        ids = set(request_ids)
        self.scheduler.abort(ids)
        self._grammars.forget(ids)
        self._held = [request for request in self._held if request.request_id not in ids]
        self._end(ids)

    def has_work(self) -> bool:
        """A step would do something now. False while only grammars are being compiled."""
        can_run = self.scheduler.has_work or self._launched or self._grammars.has_ready
        has_news = bool(self._notices) or self._has_loaded
        return has_news or (can_run and not self._sleep.is_asleep)

    def spare_s(self) -> float:
        if self._notices or not self._takes_more or not self._launched:
            return 0.0
        if self._launched[0].step.is_done():
            return 0.0
        has_prompts = self.scheduler.num_uncomputed_tokens > 0
        return self._timing.spare_s(time.perf_counter(), has_prompts=has_prompts)

    def wait_for_grammar(self, timeout_s: float) -> None:
        """Blocks until a request may go on whose grammar is being compiled, or so long."""
        self._grammars.wait_ready(timeout_s)

    def step(self) -> StepOutputs:
        """One step; what is new. Without work: only the state."""
        outputs, self._notices = self._notices, []
        self._settle_loads()
        if not self._sleep.is_asleep:
            ready, failed = self._grammars.take_ready()
            for request in ready:
                self.scheduler.add(request)
            outputs += failed
            if self.scheduler.has_work or self._launched:
                outputs += self._run_step()
        self._end(each.request_id for each in outputs if each.finish_reason is not None)
        return StepOutputs(outputs, self.scheduler.pool.take_events(), self._stats())

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while requests run.

        reset_running_requests: running ones give their blocks up and compute them again.
        """
        self._settle()
        if reset_running_requests:
            self.scheduler.preempt_all()
        return self.scheduler.pool.reset_prefix_cache()

    def shutdown(self) -> None:
        with suppress(GenerationError):  # of an engine that has failed: nothing is to be finished
            self._finish_steps()
        self._grammars.close()
        super().shutdown()

    def _settle(self) -> None:
        self._notices += self._finish_steps()

    def _end_all(self) -> None:
        self._notices += [
            SequenceOutput(request_id, [], finish_reason="abort") for request_id in self._unfinished
        ]

    def _forget_cache(self) -> None:
        self.scheduler.preempt_all()
        self.scheduler.pool.reset_prefix_cache()

    def _run_step(self) -> list[SequenceOutput]:
        """Launches the next step, and what is new of the one that is due."""
        outputs = []
        if any(sequence.needs_known_tokens for sequence in self.scheduler.running):
            outputs += self._finish_steps()
        started = time.perf_counter()
        now = time.monotonic()
        plan = self.scheduler.schedule(now, self._background_budget(now))
        has_places = len(self.scheduler.running) < self.scheduler.config.max_num_seqs
        self._takes_more = has_places and len(self.scheduler.waiting) == 0
        if plan.scheduled:
            self._launched.append(self._launch(plan))
            shape = StepShape.of(plan.num_tokens, has_prompts=plan.has_prompts)
            self._timing.launched(shape, started, time.perf_counter())
        is_waited_for = not (plan.scheduled and self._runner.overlaps)
        return outputs + self._finish_steps(keep=0 if is_waited_for else 1)

    def _background_budget(self, now: float) -> int | None:
        return self._background_pace.budget(
            now,
            has_foreground=self.scheduler.has_foreground,
            tokens_per_s=self._rates.prefill_tokens_per_s,
        )

    def _launch(self, plan: StepPlan) -> _Launched:
        started = time.perf_counter()
        rows = {
            index: sampling_row(item.sequence)
            for index, item in enumerate(plan.scheduled)
            if item.samples
        }
        ids = [item.sequence.request_id for item in plan.scheduled]
        work = SampleWork(
            rows,
            self._grammars.start_masks({index: ids[index] for index in rows}),
            prompt_parts(plan),
        )
        self._put_adapters(plan.new_adapters)
        step = self._runner.launch(
            [_step_sequence(item) for item in plan.scheduled], work, self.scheduler.take_released()
        )
        return _Launched(plan, step, started)

    def _finish_steps(self, keep: int = 0) -> list[SequenceOutput]:
        """What is new of all launched steps but the last `keep`, which go on."""
        outputs = []
        while len(self._launched) > keep:
            launched = self._launched.popleft()
            result = launched.step.result()
            self._timing.finished(result.device_s, time.perf_counter())
            ids = [item.sequence.request_id for item in launched.plan.scheduled]
            new = self.scheduler.update(
                launched.plan,
                {ids[index]: sampled_token(row) for index, row in result.sampled.items()},
                {ids[index]: token_logprobs(scores) for index, scores in result.prompts.items()},
            )
            self.scheduler.abort(self._grammars.advance(new))
            outputs += new
            self._count(launched)
        return outputs

    def _count(self, launched: _Launched) -> None:
        ended = time.perf_counter()
        plan = launched.plan
        num_decodes = sum(item.start >= item.sequence.num_prompt_tokens for item in plan.scheduled)
        self._num_steps += 1
        self._rates.add(
            plan.num_tokens,
            num_decodes,
            ended - max(launched.started, self._last_step_ended),
            has_background=plan.has_background,
        )
        self._last_step_ended = ended

    def _stats(self) -> EngineStats:
        scheduler = self.scheduler
        pool = scheduler.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self._grammars.num_pending + len(self._held),
            waiting_tokens=scheduler.num_uncomputed_tokens + self._grammars.num_pending_tokens,
            background_running=scheduler.num_background_running,
            background_waiting=scheduler.waiting.num_background,
            background_waiting_tokens=scheduler.num_background_uncomputed_tokens,
            kv_usage=1 - pool.num_free / pool.num_blocks,
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_tokens_per_s=self._rates.decode_tokens_per_s,
            preemptions_total=scheduler.num_preemptions,
            prefix_queried_tokens_total=scheduler.num_queried_tokens,
            prefix_hit_tokens_total=scheduler.num_hit_tokens,
            steps_total=self._num_steps,
            sleep_level=self._sleep.level,
            running_adapters=adapter_names(scheduler.turns.slots.held),
            waiting_adapters=adapter_names(scheduler.waiting.adapters),
        )


def _step_sequence(item: ScheduledSequence) -> StepSequence:
    sequence = item.sequence
    token_ids = sequence.token_ids[item.start : item.start + item.num_new_tokens]
    return StepSequence(
        token_ids,
        item.start,
        sequence.block_table,
        sequence.num_shared_tokens,
        sequence.request_id,
        is_last_pending=len(token_ids) < item.num_new_tokens,
        lora_slot=sequence.lora_slot,
    )
