"""The engine for servers: requests as async iterators, the engine itself in its own process."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from octavo_protocol.errors import (
    AdapterNotFoundError,
    ConfigError,
    GenerationError,
    UnavailableError,
    ValidationError,
)
from octavo_protocol.hashing import SharedPrefix
from octavo_protocol.outputs import RequestOutput
from octavo_protocol.pooling import PoolingOutput, PoolingParams, PoolingRequestOutput
from octavo_protocol.records import KVEvent
from octavo_protocol.sampling_params import SamplingParams
from octavo_protocol.tokenizer import Tokenizer
from octavo_runtime.config import EngineConfig
from octavo_runtime.engine.adapters import check_room
from octavo_runtime.engine.async_adapters import AsyncAdapters, Wanted
from octavo_runtime.engine.core_client import EngineProcess
from octavo_runtime.engine.default_params import default_sampling_params
from octavo_runtime.engine.failures import error_of
from octavo_runtime.engine.heap import FrozenHeap
from octavo_runtime.engine.input_processor import InputProcessor
from octavo_runtime.engine.messages import (
    AbortRequests,
    AddPoolingRequest,
    AddRequest,
    Control,
    ControlResult,
    EngineInfo,
    EngineRequest,
    EngineStats,
    PoolingRequest,
    PoolingResult,
    Report,
    SequenceOutput,
    StartFailed,
    StepOutputs,
)
from octavo_runtime.engine.output_collector import OutputCollector
from octavo_runtime.engine.output_processor import OutputProcessor
from octavo_runtime.engine.output_so_far import OutputSoFar
from octavo_runtime.engine.pooling_requests import (
    pooling_output,
    pooling_request,
    refuse_pooling_model,
    unfinished_error,
)
from octavo_runtime.structured_outputs.request import RequestGrammars

logger = logging.getLogger(__name__)

# Reports are taken in for so long before their readers run: what comes in the meantime is merged.
_MAX_BURST_S = 0.01
# Of a request whose adapter other loads evict before the engine has the request.
_MAX_TRIES = 3
ENGINE_CORE = "octavo_runtime.engine.new_core:new_core"


class AsyncLLM:
    """Requests in, `RequestOutput`s out. Belongs to the event loop in which `start` was called."""

    def __init__(
        self,
        process: EngineProcess,
        tokenizer: Tokenizer,
        defaults: SamplingParams,
        *,
        logits_processors: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._logits_processors = logits_processors
        self.default_sampling_params = defaults
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self._process = process
        self._inputs: InputProcessor | None = None
        self._grammars: RequestGrammars | None = None
        self._parents: dict[str, str] = {}  # request of each sequence
        self._outputs = OutputProcessor(tokenizer)
        self._heap = FrozenHeap()
        self._collectors: dict[str, OutputCollector] = {}
        self._kv_callbacks: list[Callable[[list[KVEvent]], None]] = []
        self._step_callbacks: list[Callable[[StepOutputs], None]] = []
        self._started: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
        self._taken_back: set[str] = set()  # requests whose adapter the engine did not have
        self._pooling: dict[str, asyncio.Future[PoolingResult]] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._num_calls = 0
        self.adapters = AsyncAdapters(self.control)
        self._stopping = False
        self._reader = asyncio.create_task(self._read())
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    def start(
        cls, config: EngineConfig, tokenizer: Tokenizer, *, core_factory: str = ENGINE_CORE
    ) -> "AsyncLLM":
        """Starts the engine process and returns at once; `wait_ready` waits for the model.

        core_factory: `module:callable` that makes the core from an `EngineConfig`.
        """
        defaults = default_sampling_params(config.model)
        process = EngineProcess(config, core_factory)
        return cls(process, tokenizer, defaults, logits_processors=config.logits_processors)

    async def wait_ready(self) -> EngineInfo:
        """Raises `ConfigError` or `GenerationError` when the engine cannot start."""
        return await asyncio.shield(self._started)

    @property
    def is_ready(self) -> bool:
        return self.info is not None and self.is_healthy

    @property
    def is_healthy(self) -> bool:
        """The engine process is alive, loading or loaded."""
        return not self._process.ended.is_set() and self._process.is_alive

    @property
    def num_unfinished(self) -> int:
        return len(self._collectors) + len(self._pooling)

    def on_kv_events(self, callback: Callable[[list[KVEvent]], None]) -> None:
        """Calls `callback` in the event loop with the events of every step that has any."""
        self._kv_callbacks.append(callback)

    def on_step(self, callback: Callable[[StepOutputs], None]) -> None:
        """Calls `callback` in the event loop with what every step gave."""
        self._step_callbacks.append(callback)

    async def encode(
        self,
        prompt_token_ids: Sequence[int],
        pooling_params: PoolingParams,
        request_id: str,
        *,
        token_type_ids: Sequence[int] = (),
        priority: int = 0,
        cache_salt: str = "",
        lora_request: Wanted = None,
    ) -> PoolingRequestOutput[PoolingOutput]:
        """The prompt's pooled tensor, a NumPy array of fp32 that nobody may write to.

        pooling_params: `task` None is the model's default one. token_type_ids: of each token, of
        encoders that tell a pair's texts apart. lora_request: as for `generate`.

        Cancelling it aborts the request in the engine at once. Raises `ValidationError` for a
        request that the model cannot take, `UnavailableError` while the engine loads or stops and
        for a request that `abort` ends, `GenerationError` when the engine dies.
        """
        self._check_ready()
        assert self.info is not None
        if request_id in self._pooling:
            raise unfinished_error(request_id)
        request = pooling_request(
            self.info,
            request_id,
            prompt_token_ids,
            pooling_params,
            token_type_ids=token_type_ids,
            priority=priority,
            cache_salt=cache_salt,
        )
        if lora_request is not None:
            check_room(self.info)
        for num_left in reversed(range(_MAX_TRIES)):
            async with self.adapters.using(lora_request) as adapter:
                request.adapter = adapter
                try:
                    return await self._pool(request)
                except AdapterNotFoundError:
                    if not num_left:
                        raise
                    await self.adapters.compare()
        raise AssertionError("the last try returns or raises")

    async def _pool(self, request: PoolingRequest) -> PoolingRequestOutput[PoolingOutput]:
        answer = asyncio.get_running_loop().create_future()
        self._pooling[request.request_id] = answer
        queued_ts = time.monotonic()
        try:
            self._process.send(AddPoolingRequest(request))
            return pooling_output(request, await answer, queued_ts, time.monotonic())
        finally:
            del self._pooling[request.request_id]
            if answer.cancelled():
                self._process.send(AbortRequests([request.request_id]))

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        request_id: str,
        *,
        prompt_text: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        shared_prefix: SharedPrefix | None = None,
        reasoning_end_token_ids: Sequence[int] = (),
        is_reasoning: bool = False,
        visible_special_ids: frozenset[int] = frozenset(),
        so_far: Sequence[OutputSoFar] = (),
        lora_request: Wanted = None,
    ) -> AsyncIterator[RequestOutput]:
        """Yields outputs as `sampling_params.output_kind` says, the last one with `finished`.

        shared_prefix, reasoning_end_token_ids, is_reasoning: see `EngineRequest`.
        visible_special_ids: special tokens that show in the text even where special tokens are
        skipped. so_far: what each sample had generated elsewhere; it makes the first output, and
        generation goes on from there. lora_request: an adapter, or the name of one that is known;
        it is loaded first where the engine does not have it.

        Closing or cancelling the iterator aborts the request in the engine at once. Raises
        `ValidationError` for a request that the model cannot take, `UnavailableError` while the
        engine loads or stops, `GenerationError` when it dies; of adapters, what
        `AsyncAdapters.load` raises.
        """
        self._check_ready()
        assert self.info is not None
        refuse_pooling_model(self.info)
        if lora_request is not None:
            check_room(self.info)
        assert self._inputs is not None
        assert self._grammars is not None
        grammar = await self._grammars.grammar_async(sampling_params)
        self._check_ready()  # the engine may have gone meanwhile
        children = self._inputs.process(
            request_id,
            prompt_token_ids,
            sampling_params,
            priority=priority,
            cache_salt=cache_salt,
            shared_prefix=shared_prefix,
            grammar=grammar,
            reasoning_end_token_ids=reasoning_end_token_ids,
            is_reasoning=is_reasoning,
            so_far=so_far,
        )
        self._outputs.add(
            request_id,
            children,
            sampling_params,
            prompt=prompt_text,
            visible_special_ids=visible_special_ids,
            lora_request=self.adapters.request(lora_request),
        )
        kind = sampling_params.output_kind
        self._collectors[request_id] = OutputCollector(kind)
        try:
            if so_far and (replayed := self._outputs.replay(request_id, so_far)) is not None:
                yield replayed
                if replayed.finished:
                    return
            for num_left in reversed(range(_MAX_TRIES)):
                async with self.adapters.using(lora_request) as adapter:
                    self._check_ready()
                    collector = self._collectors[request_id] = OutputCollector(kind)
                    self._send_all(request_id, children, adapter)
                    try:
                        while True:
                            output = await collector.get()
                            yield output
                            if output.finished:
                                return
                    except AdapterNotFoundError:
                        if not num_left:
                            raise
                        await self._take_back(request_id, children)
        finally:
            self._collectors.pop(request_id, None)
            self._taken_back.discard(request_id)
            for child in children:
                self._parents.pop(child.request_id, None)
            self.abort(request_id)

    def _send_all(self, request_id: str, children: list[EngineRequest], adapter: str) -> None:
        for child in filter(lambda each: self._outputs.is_running(each.request_id), children):
            child.sampling.structured_outputs = None  # the grammar says it
            child.adapter = adapter
            self._parents[child.request_id] = request_id
            self._send_request(child)

    async def _take_back(self, request_id: str, children: list[EngineRequest]) -> None:
        """Undoes `_send_all` after the engine has refused one of the sequences."""
        self._process.send(AbortRequests([child.request_id for child in children]))
        await self.adapters.compare()  # what the engine gave the others until now has come and gone
        self._taken_back.discard(request_id)

    def _send_request(self, request: EngineRequest) -> None:
        try:
            self._process.send(AddRequest(request))
        except (TypeError, ValueError) as error:  # an object of another kind; text without bytes
            raise ValidationError(
                f"the request cannot cross to the engine process: {error}"
            ) from error

    def abort(self, request_id: str) -> None:
        """Ends the request, whose reader gets a last output, and frees what it holds in the engine.

        Unknown and finished ids are ignored.
        """
        pooling = self._pooling.get(request_id)
        if pooling is not None:
            if not pooling.done():
                pooling.set_exception(UnavailableError("the request was aborted"))
                self._process.send(AbortRequests([request_id]))
            return
        ended = self._outputs.abort(request_id)
        if ended.aborts:
            self._process.send(AbortRequests(ended.aborts))
        collector = self._collectors.get(request_id)
        if collector is not None:
            for output in ended.outputs:
                collector.put(output)

    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while requests run; True preempts them first."""
        return bool(
            await self.control("reset_prefix_cache", reset_running_requests=reset_running_requests)
        )

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """See `EngineCore.sleep`. With mode "wait" it returns when the requests are done."""
        await self.control("sleep", level=level, mode=mode)

    async def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """True: the engine is fully awake. See `EngineCore.wake_up`."""
        return bool(await self.control("wake_up", tags=None if tags is None else list(tags)))

    async def is_sleeping(self) -> bool:
        return bool(await self.control("is_sleeping"))

    async def start_profile(self, prefix: str | None = None) -> None:
        """Begins to record the engine's steps. Raises `ValidationError`."""
        await self.control("start_profile", prefix=prefix)

    async def stop_profile(self) -> str:
        """The path of the trace. Raises `ValidationError` when no profile runs."""
        return str(await self.control("stop_profile"))

    def _check_ready(self) -> None:
        if self._inputs is None or not self.is_healthy or self._stopping:
            raise UnavailableError("the engine is not ready")

    async def control(self, method: str, **arguments: Any) -> Any:
        """What one of `CONTROL_METHODS` of the engine returns, called between two steps.

        Raises what the method raises, `ValidationError` for what is none of Octavo's errors, and
        `UnavailableError` when the engine is gone.
        """
        if self._stopping or not self.is_healthy:  # nobody would answer
            raise UnavailableError("the engine has ended")
        self._num_calls += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[self._num_calls] = answer
        self._process.send(Control(self._num_calls, method, arguments))
        return await answer

    async def shutdown(self) -> None:
        """Stops the engine process; requests in flight fail with `UnavailableError`.

        May be called again.
        """
        self._stopping = True
        self._heap.release()
        if self._grammars is not None:
            self._grammars.close()
        self._fail_all(UnavailableError("the server is stopping"))
        await self.adapters.close()
        if self.info is None:
            self._process.kill()  # a load can take minutes, and reads no commands
        await self._process.stop()
        await self._watcher
        self._process.close()
        if not self._started.done():
            self._started.cancel()
        elif not self._started.cancelled():
            self._started.exception()  # nobody may have asked for it

    async def _read(self) -> None:
        try:
            started = time.monotonic()
            while True:
                report = await self._process.receive()
                self._take(report)
                if time.monotonic() - started > _MAX_BURST_S:
                    await asyncio.sleep(0)  # `receive` gives way only when nothing is there
                    started = time.monotonic()
        except Exception:
            # Unread outputs would leave their requests waiting for ever in a healthy server.
            logger.exception("a report of the engine could not be handled; the engine is stopped")
            self._process.kill()

    async def _watch(self) -> None:
        """When the process ends: takes its last words, then fails what still waits."""
        await self._process.ended.wait()
        self._reader.cancel()
        try:
            for report in await self._process.last_reports():
                self._take(report)
        except Exception:
            logger.exception("a last report of the engine could not be handled")
        if not self._stopping:
            self._on_death()

    def _take(self, report: Report) -> None:
        match report:
            case StepOutputs():
                self._take_step(report)
            case EngineInfo():
                self.info = report
                self.adapters.max_adapters = report.lora.max_cpu_loras if report.lora else None
                self._inputs = InputProcessor(
                    report, self.tokenizer, logits_processors=self._logits_processors
                )
                self._grammars = RequestGrammars(
                    self.tokenizer, report.vocab_size, report.eos_token_ids
                )
                self._heap.hold()
                self._started.set_result(report)
            case StartFailed():
                kind = ConfigError if report.is_config else GenerationError
                self._started.set_exception(kind(report.message))
            case ControlResult(call_id, value, error, kind):
                answer = self._calls.pop(call_id)
                if answer.done():
                    return
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error_of(kind, error, ValidationError))

    def _take_step(self, step: StepOutputs) -> None:
        self.stats = step.stats
        if step.kv_events:
            for callback in self._kv_callbacks:
                callback(step.kv_events)
        for step_callback in self._step_callbacks:
            step_callback(step)
        for result in step.pooled:
            waiting = self._pooling.get(result.request_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(result)
        for failed in step.outputs:
            if failed.finish_reason == "error":
                self._fail(failed)
        processed = self._outputs.process(filter(self._is_awaited, step.outputs))
        if processed.aborts:
            self._process.send(AbortRequests(processed.aborts))
        for output in processed.outputs:
            collector = self._collectors.get(output.request_id)
            if collector is not None:
                collector.put(output)

    def _is_awaited(self, output: SequenceOutput) -> bool:
        """False: of a sequence of which another one's refusal has taken the whole request back."""
        taken_back = self._taken_back
        return not taken_back or self._parents.get(output.request_id) not in taken_back

    def _fail(self, output: SequenceOutput) -> None:
        """Ends the request of a sequence that the engine could not go on with."""
        request_id = self._parents.get(output.request_id, "")
        collector = self._collectors.get(request_id)
        if collector is None:
            return
        if output.error_kind == AdapterNotFoundError.__name__:  # to be loaded and tried again
            self._taken_back.add(request_id)
            collector.put(AdapterNotFoundError(output.error))
            return
        del self._collectors[request_id]
        self.abort(request_id)
        if output.error_kind not in ("", "ValidationError"):
            collector.put(error_of(output.error_kind, output.error, GenerationError))
        elif output.error:
            collector.put(ValidationError(output.error, parameter="structured_outputs"))
        else:
            collector.put(GenerationError("the engine refused the request"))

    def _on_death(self) -> None:
        status = self._process.process.returncode
        logger.error("the engine process ended with status %s", status)
        error = GenerationError(f"the engine process ended with status {status}")
        self._fail_all(error)
        if not self._started.done():
            self._started.set_exception(error)
            self._started.exception()  # nobody may be waiting

    def _fail_all(self, error: Exception) -> None:
        for collector in self._collectors.values():
            collector.put(error)
        for answer in (*self._calls.values(), *self._pooling.values()):
            if not answer.done():
                answer.set_exception(error)
        self._calls.clear()
