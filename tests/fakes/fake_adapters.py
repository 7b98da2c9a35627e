"""The engine's side of adapters without an engine: a host tier that loads, evicts and refuses.

`control` is called as `AsyncLLM.control` is. An adapter's version counts its loads.
"""

import asyncio
from collections import Counter
from typing import Any

from octavo_protocol.errors import AdapterNotFoundError, UnavailableError, ValidationError


class FakeAdapters:
    """max_adapters: of the host tier. in_use: requests of each adapter that the engine has, which
    keep it from eviction. gate: cleared, loads are not answered. refuse: errors of next loads.
    """

    def __init__(self, max_adapters: int = 2) -> None:
        self.max_adapters = max_adapters
        self.loaded: dict[str, str] = {}  # the least recently used one first
        self.pinned: set[str] = set()
        self.in_use: Counter[str] = Counter()
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuse: list[Exception] = []
        self._versions: Counter[str] = Counter()

    async def control(self, method: str, **arguments: Any) -> Any:
        self.calls.append((method, arguments))
        return await getattr(self, method)(**arguments)

    async def load_adapter(
        self, name: str, path: str, load_inplace: bool = False, pinned: bool = False
    ) -> dict[str, Any]:
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.refuse:
            raise self.refuse.pop(0)
        if name in self.loaded and not load_inplace:
            raise ValidationError(f"{name} has already been loaded")
        evicted = self._make_room(name)
        self._versions[name] += 1
        self.loaded[name] = f"v{self._versions[name]}"
        self.pinned |= {name} if pinned else set()
        return {
            "name": name,
            "version": self.loaded[name],
            "rank": 8,
            "num_bytes": 1,
            "seconds": 0.5,
            "evicted": evicted,
        }

    async def unload_adapter(self, name: str) -> None:
        if self.loaded.pop(name, None) is None:
            raise AdapterNotFoundError(f"no adapter {name}")

    async def list_adapters(self) -> list[dict[str, Any]]:
        return [{"name": name, "version": version} for name, version in self.loaded.items()]

    async def pin_adapter(self, name: str) -> None:
        self.pinned.add(name)

    def begin(self, identity: str) -> None:
        """A request with this adapter reaches the engine. Raises as the engine refuses it."""
        name, _, version = identity.partition("@")
        if self.loaded.get(name) != version:
            raise AdapterNotFoundError(f"no adapter {identity}")
        self.loaded[name] = self.loaded.pop(name)
        self.in_use[name] += 1

    def end(self, identity: str) -> None:
        self.in_use[identity.partition("@")[0]] -= 1

    def _make_room(self, name: str) -> list[str]:
        if name in self.loaded or len(self.loaded) < self.max_adapters:
            return []
        for other in self.loaded:
            if other not in self.pinned and not self.in_use[other]:
                del self.loaded[other]
                return [other]
        raise UnavailableError("all adapters in host memory are in use")
