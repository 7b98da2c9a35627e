"""What engines in the caller's process have in common: steps, adapters, sleep, profiles."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from octavo_protocol.errors import UnavailableError
from octavo_protocol.lora import LoRARequest
from octavo_runtime.engine.core_base import EngineCoreBase
from octavo_runtime.engine.heap import FrozenHeap
from octavo_runtime.engine.local_adapters import LocalAdapters
from octavo_runtime.engine.messages import EngineInfo, EngineStats, StepOutputs

Core = TypeVar("Core", bound=EngineCoreBase[Any])
Output = TypeVar("Output")


class LocalEngine(ABC, Generic[Core, Output]):
    """step … step until nothing is unfinished. Not thread-safe.

    _no_room: requests, with their adapters, that wait until host memory has room for these. Later
    requests with an adapter wait behind them; others do not.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self.adapters = LocalAdapters(core)
        self.stats = EngineStats()
        self._early: list[Output] = []  # made while `sleep` waited for them
        self._no_room: deque[tuple[LoRARequest, Sequence[Any]]] = deque()
        self._heap = FrozenHeap()  # held while requests run: between them, the heap is the caller's

    @property
    def info(self) -> EngineInfo:
        return self.core.info

    @abstractmethod
    def abort_request(self, request_ids: Iterable[str]) -> None:
        """Ends requests and frees their blocks. Unknown ids are ignored."""

    @abstractmethod
    def get_num_unfinished_requests(self) -> int: ...

    @abstractmethod
    def _is_unfinished(self, engine_request_id: str) -> bool:
        """The core has, or is to get, this request."""

    @abstractmethod
    def _taken(self, step: StepOutputs) -> list[Output]:
        """What the step gave, for the requests' readers."""

    def _wait(self) -> None:  # most work comes by calls alone
        """Blocks for a while where work is going to come up by itself."""

    def step(self) -> list[Output]:
        """One step of the engine; what it gave to whom.

        Raises `UnavailableError` while the engine sleeps, where requests would wait for ever.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        self._try_again()
        if not self.core.has_work() and self.has_unfinished_requests():
            if self.core.is_sleeping():
                raise UnavailableError("the engine sleeps: wake_up() first")
            self._wait()
        return self._step()

    def _adapter(self, lora_request: LoRARequest | None) -> str | None:
        """The identity that a request is to have; empty: no adapter. None: there is no room now.

        Raises `ValidationError` and `AdapterNotFoundError`.
        """
        if lora_request is None:
            return ""
        if self._no_room:
            return None
        try:
            return self.adapters.identity(lora_request)
        except UnavailableError:
            if not self.core.has_work():
                raise
            return None

    def _submit(
        self, requests: Sequence[Any], lora_request: LoRARequest | None, adapter: str | None
    ) -> None:
        """Gives requests to the core, now or when there is room. adapter: from `_adapter`."""
        if adapter is None:
            assert lora_request is not None
            self._no_room.append((lora_request, requests))
            return
        for request in requests:
            request.adapter = adapter
            self.core.add_request(request)

    def _try_again(self) -> None:
        """Raises what a load raises, and `UnavailableError` where room will never come."""
        waiting, self._no_room = self._no_room, deque()
        try:
            while waiting:
                lora_request, requests = waiting[0]
                wanted = [each for each in requests if self._is_unfinished(each.request_id)]
                adapter = self._adapter(lora_request) if wanted else ""
                if adapter is None:
                    return
                waiting.popleft()
                self._submit(wanted, lora_request, adapter)
        finally:
            self._no_room = waiting

    def _step(self) -> list[Output]:
        self._heap.hold()
        result = self.core.step()
        self.stats = result.stats
        outputs = self._taken(result)
        if not self.has_unfinished_requests():
            self._heap.release()
        return outputs

    def has_unfinished_requests(self) -> bool:
        """There is something for `step` to return, now or later."""
        return self.get_num_unfinished_requests() > 0 or bool(self._early)

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        """Forgets all cached blocks. False while requests run; True preempts them first."""
        return self.core.reset_prefix_cache(reset_running_requests)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """See `EngineCoreBase.sleep`. Outputs of requests that it waits for come with the next
        step.
        """
        while not self.core.sleep(level, mode):
            if not self.core.has_work():
                self._wait()
            self._early += self._step()

    def wake_up(self, tags: Sequence[str] | None = None) -> bool:
        """True: the engine is fully awake. See `EngineCoreBase.wake_up`."""
        return self.core.wake_up(None if tags is None else list(tags))

    def is_sleeping(self) -> bool:
        return self.core.is_sleeping()

    def start_profile(self, prefix: str | None = None) -> None:
        """Begins to record steps. Raises `ValidationError`."""
        self.core.start_profile(prefix)

    def stop_profile(self) -> str:
        """The path of the trace. Raises `ValidationError` when no profile runs."""
        return self.core.stop_profile()

    def shutdown(self) -> None:
        self._heap.release()
        self.core.shutdown()
