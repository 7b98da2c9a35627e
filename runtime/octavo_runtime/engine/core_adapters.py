"""The adapters of an engine core: loaded, kept for their requests, put into the device's slots.

    files ──thread──▶ host tier ──before the step that needs it──▶ slot

Belongs to the engine's thread; only files are read in others.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from octavo_protocol.errors import ValidationError
from octavo_runtime.config import LoRAConfig
from octavo_runtime.engine.messages import LoRAInfo
from octavo_runtime.lora.adapter import LoRAAdapter
from octavo_runtime.lora.host_tier import HostTier
from octavo_runtime.lora.loads import AdapterLoads, Load
from octavo_runtime.lora.peft_files import AdapterLimits, read_adapter
from octavo_runtime.lora.slots import SlotTable


class AdapterDevice(Protocol):
    """What has the slots: a runner."""

    def set_adapter(self, slot: int, adapter: LoRAAdapter | None) -> None: ...


class CoreAdapters:
    """on_loaded: called in a thread when `settle` has something to do."""

    def __init__(
        self,
        config: LoRAConfig,
        limits: AdapterLimits,
        slots: SlotTable,
        device: AdapterDevice,
        on_loaded: Callable[[], None],
    ) -> None:
        self._config = config
        self._slots = slots
        self._device = device
        self._tier = HostTier(config.num_host_adapters, slots.forget)
        self._loads = AdapterLoads(lambda name, path: read_adapter(name, path, limits), on_loaded)

    @property
    def info(self) -> LoRAInfo:
        return LoRAInfo(
            max_loras=self._config.max_loras,
            max_cpu_loras=self._config.num_host_adapters,
            max_lora_rank=self._config.max_lora_rank,
        )

    # -- what is known ------------------------------------------------------------------------

    def load(self, load: Load) -> Future[dict[str, Any]]:
        """Starts to read; the answer comes by `settle`. Raises `ValidationError`."""
        self._check_new(load)
        self._loads.start(load)
        return load.answer

    def unload(self, name: str) -> None:
        """Raises `AdapterNotFoundError`."""
        self._tier.remove(name)

    def pin(self, name: str) -> None:
        """Raises `AdapterNotFoundError`."""
        self._tier.pin(name)

    def describe(self) -> list[dict[str, Any]]:
        """All known adapters, the one used longest ago first."""
        on_device = self._slots.contents
        return [
            {
                "name": adapter.name,
                "version": adapter.version,
                "rank": adapter.rank,
                "pinned": self._tier.is_pinned(adapter.name),
                "on_device": adapter.identity in on_device,
                "num_bytes": adapter.num_bytes,
                "num_requests": self._tier.num_requests(adapter.identity),
            }
            for adapter in self._tier.known
        ]

    @property
    def has_loaded(self) -> bool:
        """`settle` would do something."""
        return self._loads.has_done

    def settle(self) -> None:
        """Takes in what has been read, and answers those who asked for it."""
        for load, read in self._loads.take_done():
            try:
                answer = self._take(load, read.result())
            except Exception as error:  # noqa: BLE001  # it is the answer
                load.answer.set_exception(error)
            else:
                load.answer.set_result(answer)

    def finish_loads(self) -> None:
        """Waits until no load is under way, and settles all."""
        while self._loads.wait():
            self.settle()

    # -- requests and steps -------------------------------------------------------------------

    def begin(self, adapter: str) -> None:
        """A request with this identity arrives. Raises `AdapterNotFoundError`."""
        self._tier.acquire(adapter)

    def end(self, adapter: str) -> None:
        """It has ended."""
        self._tier.release(adapter)

    def put(self, changes: Iterable[tuple[int, str]]) -> None:
        """Copies adapters into slots, before the step that needs them."""
        for slot, adapter in changes:
            self._device.set_adapter(slot, self._tier.get(adapter))

    def forget_slots(self) -> None:
        """The device loses them. Nothing runs."""
        self._slots.forget_all()

    def close(self) -> None:
        self._loads.close()

    def check(self) -> None:
        """For tests."""
        self._tier.check()
        assert (
            set(self._slots.held)
            <= {each.identity for each in self._tier.known} | self._tier.retired
        )

    # -- internals ----------------------------------------------------------------------------

    def _take(self, load: Load, adapter: LoRAAdapter) -> dict[str, Any]:
        self._check_new(load)
        evicted = self._tier.add(adapter, pinned=load.pinned)
        return {
            "name": adapter.name,
            "version": adapter.version,
            "rank": adapter.rank,
            "num_bytes": adapter.num_bytes,
            "seconds": time.perf_counter() - load.started,
            "evicted": evicted,
        }

    def _check_new(self, load: Load) -> None:
        if load.name in self._tier and not load.load_inplace:
            raise ValidationError(
                f"the adapter {load.name!r} has already been loaded: set load_inplace to replace "
                "it, or unload it first",
                parameter="name",
            )


def adapter_names(identities: Iterable[str]) -> list[str]:
    """Of adapters, whatever their versions; empty identities are none."""
    return sorted({identity.rpartition("@")[0] for identity in identities if identity})
