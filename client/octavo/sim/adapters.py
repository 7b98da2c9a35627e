"""Adapters in a simulation: which requests ask for one, and which of them a replica has.

Popularity follows Zipf's law: the k-th adapter is asked for k^-skew as often as the first. A load
takes its seconds beside the steps, `LOADS_PER_REPLICA` at a time, and the requests that came for it
wait. Where a replica has no place left it drops the adapter that was used longest ago of those
without requests; while there is none, what has been read waits too.

Simplification: an adapter that a replica has is in a slot of its device too.
"""

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from octavo.sim.options import AdapterTraffic
from octavo.sim.trace import TraceRequest
from octavo_router.adapters.loader import LOADS_PER_REPLICA


def adapter_names(traffic: AdapterTraffic) -> list[str]:
    """The one that is asked for most first."""
    return [f"adapter-{rank}" for rank in range(1, traffic.num_adapters + 1)]


def with_adapters(
    requests: Sequence[TraceRequest], traffic: AdapterTraffic, seed: int
) -> list[TraceRequest]:
    """The same requests, some of them for adapters, which share no blocks with others."""
    names = adapter_names(traffic)
    if not names:
        return list(requests)
    rng = random.Random(seed)
    weights = (rank**-traffic.skew for rank in range(1, len(names) + 1))
    totals = list(itertools.accumulate(weights))
    return [
        _asking(request, rng.choices(names, cum_weights=totals)[0])
        if rng.random() < traffic.share
        else request
        for request in requests
    ]


def _asking(request: TraceRequest, name: str) -> TraceRequest:
    hashes = tuple(name.encode() + b"/" + each for each in request.hashes)
    return replace(request, adapter=name, hashes=hashes)


class SimulatedAdapters:
    """Of one replica. known: names that it answers to. num_loads: that have ended."""

    def __init__(self, max_adapters: int, load_s: float) -> None:
        self.known: set[str] = set()
        self.num_loads = 0
        self._max_adapters = max_adapters
        self._load_s = load_s
        self._num_users: dict[str, int] = {}  # of what is loaded; the one used longest ago first
        self._reading: dict[str, float] = {}  # with the time at which each has been read
        self._queue: deque[str] = deque()

    @property
    def loaded(self) -> list[str]:
        return list(self._num_users)

    def has(self, name: str) -> bool:
        return name in self._num_users

    def is_loading(self, name: str) -> bool:
        return name in self._reading or name in self._queue

    def load(self, name: str, now: float) -> None:
        """Begins a load, unless it is there or on its way."""
        if not self.has(name) and not self.is_loading(name):
            self._queue.append(name)
            self._begin(now)

    def next_read(self, now: float) -> float:
        """When the next one has been read, after `now`; infinite without one."""
        return min((at for at in self._reading.values() if at > now), default=math.inf)

    def settle(self, now: float) -> Iterator[str]:
        """Takes in, one by one, what has been read by `now`, as far as there are places."""
        for name in [name for name, at in self._reading.items() if at <= now]:
            if not self._make_room():
                return
            del self._reading[name]
            self._num_users[name] = 0
            self.known.add(name)
            self.num_loads += 1
            self._begin(now)
            yield name

    def begin(self, name: str) -> None:
        """A request that uses it, which is loaded, starts."""
        self._num_users[name] = self._num_users.pop(name) + 1

    def end(self, name: str) -> None:
        """It has ended."""
        self._num_users[name] -= 1

    def check(self) -> None:
        """Asserts what this module promises. For tests."""
        assert len(self._num_users) <= self._max_adapters
        assert len(self._reading) <= LOADS_PER_REPLICA
        assert all(count >= 0 for count in self._num_users.values())
        assert self._num_users.keys().isdisjoint({*self._reading, *self._queue})

    def _begin(self, now: float) -> None:
        while self._queue and len(self._reading) < LOADS_PER_REPLICA:
            self._reading[self._queue.popleft()] = now + self._load_s

    def _make_room(self) -> bool:
        """Whether there is a place now."""
        if len(self._num_users) < self._max_adapters:
            return True
        idle = next((name for name, count in self._num_users.items() if not count), None)
        if idle is None:
            return False
        del self._num_users[idle]
        return True
