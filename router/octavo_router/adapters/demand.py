"""How much each adapter is asked for, and how many replicas are to hold it for that.

    demand = requests a second x seconds that each takes = requests in flight on average
    copies = demand / (half of the sequences that a replica runs at once), rounded up

The first line is Little's law; the average fades with a time constant of a minute. So a fine-tune
that is asked for now and then has one copy, and one that takes the traffic of a whole replica two.
Copies are added at once, and given up only when what is left would be less than half used: demand
that swings around a bound changes nothing.

A router sees its own requests alone; with several of them each adds copies for its share, and where
that is too few the policy's price of waiting does.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

TIME_CONSTANT_S = 60.0
TARGET_SHARE = 0.5
_SHRINK_SHARE = 0.5
# Less is no demand: about ten minutes after the last of a few short requests.
MIN_DEMAND = 1e-4


@dataclass(slots=True)
class _Demand:
    num_open: int = 0
    average: float = 0.0
    at: float = 0.0

    def now(self, now: float) -> float:
        faded = math.exp((self.at - now) / TIME_CONSTANT_S)
        return self.num_open + (self.average - self.num_open) * faded


class AdapterDemand:
    """Requests in flight by adapter, averaged."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._demands: dict[str, _Demand] = {}

    @contextmanager
    def request(self, name: str) -> Iterator[None]:
        """A request for the adapter is in flight."""
        self._add(name, 1)
        try:
            yield
        finally:
            self._add(name, -1)

    def measure(self) -> Mapping[str, float]:
        """Requests in flight of each adapter that is in demand; the others are forgotten."""
        now = self._clock()
        measured = {name: each.now(now) for name, each in self._demands.items()}
        for name, demand in measured.items():
            if demand < MIN_DEMAND and not self._demands[name].num_open:
                del self._demands[name]
        return {name: demand for name, demand in measured.items() if name in self._demands}

    def _add(self, name: str, number: int) -> None:
        demand, now = self._demands.setdefault(name, _Demand()), self._clock()
        demand.average, demand.at = demand.now(now), now
        demand.num_open += number


def wanted_copies(demand: float, max_num_seqs: float, current: int) -> int:
    """How many replicas are to hold an adapter.

    demand: requests in flight. max_num_seqs: that a replica runs at once. current: copies wanted
    until now.
    """
    if demand < MIN_DEMAND:
        return 0
    carried = TARGET_SHARE * max_num_seqs
    needed = max(1, math.ceil(demand / carried))
    is_idle = demand < _SHRINK_SHARE * carried * (current - 1)
    return needed if needed > current or is_idle else current
