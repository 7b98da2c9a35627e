"""The adapters that an engine knows, in host memory. Pure: it reads no files.

    known      by name, the newest version of each; new requests get these
    retired    versions that were replaced or unloaded while requests used them; they go with the
               last of these

Both together are at most `capacity`. To make room for one more, the known adapter that was used
longest ago goes, of those that are not pinned and have no requests.
"""

from collections.abc import Callable, Iterable

from octavo_protocol.errors import AdapterNotFoundError, UnavailableError
from octavo_runtime.lora.adapter import LoRAAdapter


class HostTier:
    """on_leave: called with the identity of every adapter that leaves."""

    def __init__(self, capacity: int, on_leave: Callable[[str], None]) -> None:
        self._capacity = capacity
        self._on_leave = on_leave
        self._known: dict[str, LoRAAdapter] = {}  # the one used longest ago first
        self._retired: dict[str, LoRAAdapter] = {}
        self._pinned: set[str] = set()
        self._num_requests: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._retired)

    def __contains__(self, name: str) -> bool:
        """The name is known."""
        return name in self._known

    @property
    def known(self) -> tuple[LoRAAdapter, ...]:
        return tuple(self._known.values())

    @property
    def retired(self) -> set[str]:
        """Identities of versions that only their requests keep."""
        return set(self._retired)

    def is_pinned(self, name: str) -> bool:
        return name in self._pinned

    def num_requests(self, identity: str) -> int:
        return self._num_requests.get(identity, 0)

    def get(self, identity: str) -> LoRAAdapter:
        """The adapter of a request that uses it."""
        retired = self._retired.get(identity)
        return self._known[_name(identity)] if retired is None else retired

    def add(self, adapter: LoRAAdapter, *, pinned: bool = False) -> list[str]:
        """Makes the adapter known, in place of the version before; the names that were evicted.

        Raises `UnavailableError`, and changes nothing, where all others are pinned or in use.
        """
        victims = self._victims(adapter)
        for name in victims:
            self._drop(name)
        old = self._known.get(adapter.name)
        if old is None or old.identity != adapter.identity:
            if old is not None:
                self._retire(old)
            self._known[adapter.name] = self._retired.pop(adapter.identity, adapter)
        self._touch(adapter.name)
        if pinned:
            self._pinned.add(adapter.name)
        return victims

    def remove(self, name: str) -> None:
        """Forgets the name; its memory goes with its last request.

        Raises `AdapterNotFoundError`.
        """
        self._retire(self._find(name))
        del self._known[name]
        self._pinned.discard(name)

    def pin(self, name: str) -> None:
        """Keeps it from being evicted. Raises `AdapterNotFoundError`."""
        self._find(name)
        self._pinned.add(name)

    def acquire(self, identity: str) -> None:
        """One more request uses this version. Raises `AdapterNotFoundError`."""
        name = _name(identity)
        known = self._known.get(name)
        if known is None or known.identity != identity:
            raise AdapterNotFoundError(
                f"the adapter {name!r} is not loaded in this version any more: load it again, or "
                "send the request again",
                parameter="model",
            )
        self._num_requests[identity] = self._num_requests.get(identity, 0) + 1
        self._touch(name)

    def release(self, identity: str) -> None:
        """One request less. The last one of a retired version lets it go."""
        self._num_requests[identity] -= 1
        if self._num_requests[identity] > 0:
            return
        del self._num_requests[identity]
        if self._retired.pop(identity, None) is not None:
            self._on_leave(identity)

    def check(self) -> None:
        """Asserts what this module promises. For tests."""
        assert len(self) <= self._capacity
        assert self._pinned <= set(self._known)
        assert all(self._num_requests.get(identity, 0) > 0 for identity in self._retired)
        identities = {adapter.identity for adapter in self._known.values()}
        assert identities.isdisjoint(self._retired)
        assert set(self._num_requests) <= identities | set(self._retired)

    def _victims(self, adapter: LoRAAdapter) -> list[str]:
        """Whom to evict before `adapter` comes. Raises `UnavailableError`."""
        num_over = len(self) - self._capacity + self._growth(adapter)
        if num_over <= 0:
            return []
        free = [
            each.name
            for each in self._known.values()
            if self._is_free(each) and each.name != adapter.name and each.name not in self._pinned
        ]
        if len(free) < num_over:
            raise UnavailableError(
                f"no room for the adapter {adapter.name!r}: all {self._capacity} places for "
                "adapters in host memory are pinned or used by requests. Send it again later, "
                "unload an adapter, or raise --max-cpu-loras"
            )
        return free[:num_over]

    def _growth(self, adapter: LoRAAdapter) -> int:
        """Places that `adapter` takes in addition, 1 or 0."""
        if adapter.identity in self._retired:
            return 0
        old = self._known.get(adapter.name)
        return (
            0 if old is not None and (old.identity == adapter.identity or self._is_free(old)) else 1
        )

    def _is_free(self, adapter: LoRAAdapter) -> bool:
        return adapter.identity not in self._num_requests

    def _drop(self, name: str) -> None:
        self._on_leave(self._known.pop(name).identity)

    def _retire(self, adapter: LoRAAdapter) -> None:
        """A known adapter is known no longer, and stays while requests use it."""
        if self._is_free(adapter):
            self._on_leave(adapter.identity)
        else:
            self._retired[adapter.identity] = adapter

    def _touch(self, name: str) -> None:
        self._known[name] = self._known.pop(name)

    def _find(self, name: str) -> LoRAAdapter:
        adapter = self._known.get(name)
        if adapter is None:
            known: Iterable[str] = sorted(self._known)
            raise AdapterNotFoundError(
                f"no adapter {name!r} is loaded; loaded are: {', '.join(known) or 'none'}",
                parameter="name",
            )
        return adapter


def _name(identity: str) -> str:
    return identity.rpartition("@")[0]
