"""Adapters of an engine in the caller's process: loaded as requests name them, in its thread."""

from concurrent.futures import Future
from typing import Any, Protocol

from octavo_protocol.lora import LoRARequest
from octavo_runtime.engine.adapters import (
    AdapterBook,
    KnownAdapter,
    already_loaded,
    check_room,
)
from octavo_runtime.engine.messages import EngineInfo
from octavo_runtime.models.adapter_source import resolve_adapter


class AdapterCore(Protocol):
    """What it asks of an engine core."""

    info: EngineInfo

    def load_adapter(
        self, name: str, path: str, load_inplace: bool = False, pinned: bool = False
    ) -> Future[dict[str, Any]]: ...
    def unload_adapter(self, name: str) -> None: ...
    def pin_adapter(self, name: str) -> None: ...
    def finish_loads(self) -> None: ...


class LocalAdapters:
    """Not thread-safe, as its engine is not."""

    def __init__(self, core: AdapterCore) -> None:
        self.book = AdapterBook()
        self._core = core

    def identity(self, request: LoRARequest) -> str:
        """Of the version that a request which is queued now uses. Loads it where the engine does
        not have it; raises what `load` raises.
        """
        check_room(self._core.info)
        known = self.book.usable(request)
        return (known or self._load(request, pinned=False)).identity

    def load(self, request: LoRARequest, *, pinned: bool = False) -> KnownAdapter:
        """Makes the adapter known and loads it. pinned: it is never evicted.

        Raises `ValidationError` for a name that is known (but with `load_inplace`) and for files
        that are no adapter for this model, `AdapterNotFoundError` where there are none, and
        `UnavailableError` while there is no room.
        """
        check_room(self._core.info)
        self.book.check(request)
        if not request.load_inplace and request.lora_name in self.book:
            raise already_loaded(request.lora_name)
        return self._load(request, pinned=pinned)

    def unload(self, name: str) -> None:
        """Forgets the adapter; requests that use it go on. Raises `AdapterNotFoundError`."""
        known = self.book.find(name)
        self.book.forget(name)
        if known.is_loaded:
            self._core.unload_adapter(name)

    def pin(self, name: str) -> None:
        """Loads it if needed, and keeps it from eviction. Raises `AdapterNotFoundError`."""
        self.identity(self.book.find(name).request)
        self._core.pin_adapter(name)

    def _load(self, request: LoRARequest, *, pinned: bool) -> KnownAdapter:
        name = request.lora_name
        known = self.book.get(name)
        revision = None if known is None else known.revision
        folder = resolve_adapter(request.lora_path, revision=revision)
        is_known = request.load_inplace or known is not None
        answer = self._core.load_adapter(name, str(folder), load_inplace=is_known, pinned=pinned)
        self._core.finish_loads()
        return self.book.take(request, revision, answer.result())
