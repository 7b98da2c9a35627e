"""What cores of either kind do around their steps: adapters, sleep, wake up, profiles, the end."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Generic, TypeVar

from octavo_kernels.allocator import trim_allocator
from octavo_protocol.errors import ConfigError, ValidationError
from octavo_runtime.config import EngineConfig, LoRAConfig
from octavo_runtime.engine.core_adapters import CoreAdapters
from octavo_runtime.engine.messages import EngineInfo, PoolingInfo, StepOutputs
from octavo_runtime.engine.profiler import StepProfiler
from octavo_runtime.engine.sleep import KV_CACHE, WEIGHTS, SleepState
from octavo_runtime.engine.wakeup import Wakeup
from octavo_runtime.lora.loads import Load
from octavo_runtime.lora.peft_files import AdapterLimits
from octavo_runtime.lora.slots import SlotTable
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.worker.served_model import ServedModel

Request = TypeVar("Request")


class EngineCoreBase(ABC, Generic[Request]):
    """A subclass runs requests, and tells their begin and end.

    _unfinished: the adapter of each that is not finished. _held: requests that have arrived while
    the engine drains. _adapters: None where requests with an adapter are refused.
    """

    info: EngineInfo

    def __init__(self, config: EngineConfig, runner: ServedModel) -> None:
        self._model = runner
        self._sleep = SleepState(is_enabled=config.enable_sleep_mode)
        self._profiler = StepProfiler(config.profiler_dir)
        self._adapters: CoreAdapters | None = None
        self._unfinished: dict[str, str] = {}
        self._is_draining = False
        self._held: list[Request] = []

    def _described(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        *,
        cache_model: str,
        num_blocks: int,
        max_model_len: int,
        max_num_seqs: int,
        num_graphs: int = 0,
        pooling: PoolingInfo | None = None,
    ) -> EngineInfo:
        """What `info` says, once the model is loaded and there is room for adapters."""
        return EngineInfo(
            model=str(config.model),
            cache_model=cache_model,
            dtype=str(self._model.dtype).removeprefix("torch."),
            block_size=config.block_size,
            num_blocks=num_blocks,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            vocab_size=model_config.vocab_size,
            eos_token_ids=list(model_config.eos_token_ids),
            max_logprobs=config.max_logprobs,
            enable_prefix_caching=config.enable_prefix_caching and num_blocks > 0,
            stages=self._model.stages,
            num_graphs=num_graphs,
            pooling=pooling,
            lora=self._adapters.info if self._adapters is not None else None,
        )

    @abstractmethod
    def add_request(self, request: Request) -> None:
        """Queues a request that the API side has validated against `info`."""

    @abstractmethod
    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks at once. Unknown ids are ignored."""

    @abstractmethod
    def has_work(self) -> bool:
        """A step would do something now."""

    def spare_s(self) -> float:
        """Seconds for which the next step can wait: the device is busy, and a request that arrives
        until then is in it. Ask again after half a millisecond or so: steps can be shorter.
        """
        return 0.0

    @abstractmethod
    def step(self) -> StepOutputs:
        """One step; what is new. Without work: only the state."""

    @abstractmethod
    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while any is in use; True takes them all first."""

    @abstractmethod
    def _settle(self) -> None:
        """Waits for the steps that run; the next step tells what they gave."""

    @abstractmethod
    def _end_all(self) -> None:
        """Lets the next step tell that all unfinished requests were aborted."""

    @abstractmethod
    def _forget_cache(self) -> None:
        """Takes every block from requests and prefix cache."""

    def sleep(self, level: int = 1, mode: str = "abort") -> bool:
        """Stops to run requests and frees memory; see `engine/sleep.py` for the levels.

        mode: what becomes of unfinished requests. "abort": they end. "keep": they go on after
        `wake_up`. "wait": the engine first finishes them and holds new ones back; returns False,
        and is to be called again after a step, until they are done. Requests that arrive asleep
        wait. Raises `ValidationError`.
        """
        self._sleep.check(level, mode)
        if mode == "wait" and self._unfinished and not self._sleep.is_asleep:
            self._is_draining = True
            return False
        self._is_draining = False
        self._settle()
        if mode == "abort":
            self._end_all()
            self.abort(list(self._unfinished))
        self._sleep.fall_asleep(level)
        if level > 0:
            self._forget_cache()
            if self._adapters is not None:
                self._adapters.forget_slots()
            self._model.drop_kv_cache()
            if self._sleep.has_weights:
                self._model.offload_model()
            else:
                self._model.drop_model()
            trim_allocator()
        self._release_held()
        return True

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Takes back what the parts that `tags` name have given up; None: all parts.

        True: the engine is fully awake. Raises `ValidationError` for unknown tags, `ConfigError`
        when the memory or the weights cannot be had; those parts then go on sleeping.
        """
        waking = self._sleep.waking(tags)
        if WEIGHTS in waking and self._sleep.has_weights:
            self._model.restore_model()
        elif WEIGHTS in waking:
            self._model.load_model()
            self._sleep.has_weights = True
        if KV_CACHE in waking and self.info.num_blocks:
            self._model.allocate_kv_cache(self.info.num_blocks)
        if waking & {KV_CACHE, WEIGHTS} and waking == self._sleep.parts:
            self._warm_up(waking)
        self._sleep.parts -= waking
        self._is_draining = False
        self._release_held()
        return not self._sleep.is_asleep

    def _warm_up(self, waking: set[str]) -> None:
        """Raises `ConfigError` where the memory does not suffice; what `waking` took is free."""
        try:
            self._model.warm_up(self.info.max_model_len)
        except ConfigError:
            if KV_CACHE in waking:
                self._model.drop_kv_cache()
            if WEIGHTS in waking:
                self._model.offload_model()
            raise

    def load_adapter(
        self, name: str, path: str, load_inplace: bool = False, pinned: bool = False
    ) -> Future[dict[str, Any]]:
        """Makes an adapter known, from the folder `path`; answered when it can be used.

        The answer: name, version, rank, num_bytes, seconds, evicted (names that made room).
        load_inplace: a known name gets a new version; requests that run keep theirs. pinned: it is
        not evicted. Raises `ValidationError`; the answer may also be `AdapterNotFoundError` or,
        where there is no room, `UnavailableError`.
        """
        load = Load(name=name, path=Path(path), load_inplace=load_inplace, pinned=pinned)
        return self._room_for_adapters().load(load)

    def unload_adapter(self, name: str) -> None:
        """New requests find it no longer; those that run keep it. Raises `AdapterNotFoundError`."""
        self._room_for_adapters().unload(name)

    def pin_adapter(self, name: str) -> None:
        """Keeps it from being evicted. Raises `AdapterNotFoundError`."""
        self._room_for_adapters().pin(name)

    def list_adapters(self) -> list[dict[str, Any]]:
        """Each with name, version, rank, pinned, on_device, num_bytes and num_requests."""
        return self._adapters.describe() if self._adapters is not None else []

    def finish_loads(self) -> None:
        """Waits for all adapters that are being loaded: their answers are there then."""
        if self._adapters is not None:
            self._adapters.finish_loads()

    def is_sleeping(self) -> bool:
        return self._sleep.is_asleep

    def start_profile(self, prefix: str | None = None) -> None:
        """Begins to record steps. Raises `ValidationError`."""
        self._profiler.start(prefix)

    def stop_profile(self) -> str:
        """The path of the trace. Raises `ValidationError` when no profile runs."""
        return self._profiler.stop()

    def shutdown(self) -> None:
        """Gives up the memory; no step may follow."""
        if self._adapters is not None:
            self._adapters.close()
        self._model.drop_kv_cache()
        self._model.drop_model()
        self._model.close()

    def _make_room_for_adapters(
        self, config: LoRAConfig | None, model: ServedModel, slots: SlotTable, wakeup: Wakeup
    ) -> None:
        """slots: the scheduler's. wakeup: signals that an adapter has been read. None: no room."""
        if config is None:
            return
        limits = AdapterLimits(
            model.adapter_targets,
            config.max_lora_rank,
            model.adapter_dtype,
            pin_memory=model.device.type == "cuda",
        )
        self._adapters = CoreAdapters(config, limits, slots, model, wakeup.set)

    @property
    def _has_loaded(self) -> bool:
        return self._adapters is not None and self._adapters.has_loaded

    def _settle_loads(self) -> None:
        if self._adapters is not None:
            self._adapters.settle()

    def _put_adapters(self, changes: Iterable[tuple[int, str]]) -> None:
        """Copies adapters into slots. Before the step that needs them is launched."""
        if self._adapters is not None:
            self._adapters.put(changes)

    def _begin(self, request_id: str, adapter: str) -> None:
        """Raises `AdapterNotFoundError`, or `ValidationError` where no adapter is served."""
        if adapter:
            self._room_for_adapters().begin(adapter)
        self._unfinished[request_id] = adapter

    def _end(self, request_ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for request_id in request_ids:
            adapter = self._unfinished.pop(request_id, "")
            if adapter and self._adapters is not None:
                self._adapters.end(adapter)

    def _room_for_adapters(self) -> CoreAdapters:
        """Raises `ValidationError` where there is none."""
        if self._adapters is None:
            raise ValidationError(
                "this engine serves no LoRA adapters: start it with enable_lora (--enable-lora)",
                parameter="model",
            )
        return self._adapters

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for request in held:
            self.add_request(request)
