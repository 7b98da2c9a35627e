"""Where further copies of an adapter go. Pure.

A replica with room for one more adapter comes before one that would have to give one up, and that
one is asked only where what it would give up is asked for half as much at most; then the replica
with the least to do; then the order of a hash, in which routers agree that cannot ask each other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# An adapter gives way only to one that is asked for so many times as much.
_WORTH = 2.0


@dataclass(frozen=True, slots=True)
class Host:
    """A replica that may be asked to load adapters.

    adapters: that it has, or is loading. max_adapters: that it can have. load_s: seconds of work
    that are queued there.
    """

    replica_id: str
    adapters: frozenset[str]
    max_adapters: int
    load_s: float


def new_hosts(
    name: str, copies: int, hosts: Sequence[Host], demands: Mapping[str, float]
) -> list[Host]:
    """The replicas that are to load the adapter, so that `copies` of them have it.

    demands: requests in flight by adapter, of those that are asked for.
    """
    num_missing = copies - sum(name in host.adapters for host in hosts)
    able = [
        host
        for host in hosts
        if name not in host.adapters and (_has_room(host) or _gives_way(name, host, demands))
    ]
    ordered = sorted(able, key=lambda host: _cost(name, host))
    return ordered[: max(0, num_missing)]


def _has_room(host: Host) -> bool:
    return len(host.adapters) < host.max_adapters


def _gives_way(name: str, host: Host, demands: Mapping[str, float]) -> bool:
    """Whether the adapter that the replica misses least is worth less than `name`."""
    least = min((demands.get(each, 0.0) for each in host.adapters), default=0.0)
    return _WORTH * least <= demands.get(name, 0.0) and host.max_adapters > 0


def _cost(name: str, host: Host) -> tuple[bool, float, bytes]:
    order = hashlib.blake2b(f"{name}\0{host.replica_id}".encode(), digest_size=8).digest()
    return not _has_room(host), round(host.load_s, 1), order
