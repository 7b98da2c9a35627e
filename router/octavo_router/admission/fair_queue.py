"""The order in which waiting requests go on, and who may wait. Pure: no clock, no I/O.

Priorities are strict: a class goes before every class of a higher number. Inside a class tenants
share by their weights, in tokens, by deficit round robin; a tenant's own requests go first in,
first out. Source: Shreedhar and Varghese, "Efficient Fair Queueing Using Deficit Round Robin"
(SIGCOMM 1995).

    class 0:  acme  [r7 r9]        deficit 300     <- whose turn it is
              beta  [r2 r3 r8]     deficit 0
    class 3:  beta  [r1]           deficit 0

Bounds hold for requests and tokens. A full queue takes a newcomer only in place of the newest of
whom it has most of: of the last class, where that is behind the newcomer's, else of the tenant
whose queue is longest for its weight, and only if that stays the longer one. So one tenant cannot
keep others out. Source of dropping from the longest queue: McKenney, "Stochastic Fairness Queueing"
(INFOCOM 1990). The last quarter of the bounds is not for requests whose priority is below normal.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

QUANTUM = 1024
_LOW_SHARE = 0.75
_NORMAL = 0


class QueueFullError(Exception):
    """The request found no place."""


@dataclass(eq=False, frozen=True, slots=True)
class Waiter:
    """One request that waits. num_tokens: what it is expected to cost, prompt and output."""

    tenant: str
    num_tokens: int
    weight: float = 1.0
    priority: int = _NORMAL


@dataclass(eq=False, slots=True)
class _Flow:
    """What one tenant has waiting in one class."""

    weight: float = 1.0
    deficit: float = 0.0
    has_turn: bool = False
    num_tokens: int = 0
    waiters: "OrderedDict[Waiter, int]" = field(default_factory=OrderedDict)  # -> tokens

    @property
    def head_tokens(self) -> int:
        return next(iter(self.waiters.values()))

    @property
    def length(self) -> float:
        """For its weight."""
        return self.num_tokens / self.weight

    def add(self, waiter: Waiter, num_tokens: int) -> None:
        self.weight = waiter.weight
        self.waiters[waiter] = num_tokens
        self.num_tokens += num_tokens

    def remove(self, waiter: Waiter) -> int:
        num_tokens = self.waiters.pop(waiter)
        self.num_tokens -= num_tokens
        return num_tokens


class _Class:
    """The flows of one priority, in the order of their turns; none is empty."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self.flows: OrderedDict[str, _Flow] = OrderedDict()

    def pop(self) -> tuple[Waiter, int]:
        """Who goes on next, and its tokens."""
        turns_without = 0
        while True:
            flow = next(iter(self.flows.values()))
            if not flow.has_turn:
                flow.has_turn = True
                flow.deficit += self._quantum * flow.weight
            if flow.head_tokens <= flow.deficit:
                waiter = next(iter(flow.waiters))
                num_tokens = self.remove(waiter)
                flow.deficit -= num_tokens
                return waiter, num_tokens
            flow.has_turn = False
            self.flows.move_to_end(next(iter(self.flows)))
            turns_without += 1
            if turns_without == len(self.flows):
                self._skip_rounds()
                turns_without = 0

    def remove(self, waiter: Waiter) -> int:
        """Returns its tokens. A flow that gets empty forgets its deficit."""
        flow = self.flows[waiter.tenant]
        num_tokens = flow.remove(waiter)
        if not flow.waiters:
            del self.flows[waiter.tenant]
        return num_tokens

    def _skip_rounds(self) -> None:
        """Plays at once the rounds in which nobody could be served yet."""
        num_rounds = min(
            math.ceil((flow.head_tokens - flow.deficit) / (self._quantum * flow.weight))
            for flow in self.flows.values()
        )
        for flow in self.flows.values():
            flow.deficit += (num_rounds - 1) * self._quantum * flow.weight


class FairQueue:
    """Waiting requests, within bounds. A request larger than `max_tokens` counts as that many."""

    def __init__(self, *, max_requests: int, max_tokens: int, quantum: int = QUANTUM) -> None:
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self._quantum = quantum
        self._classes: dict[int, _Class] = {}
        self.num_requests = 0
        self.num_tokens = 0

    @property
    def first_priority(self) -> int | None:
        """Of who goes on next; None: nobody waits."""
        return min(self._classes, default=None)

    def push(self, waiter: Waiter) -> list[Waiter]:
        """Enters `waiter`; returns who had to make place. Raises `QueueFullError`; then nothing has
        changed.
        """
        num_tokens = min(max(1, waiter.num_tokens), self.max_tokens)
        displaced: list[Waiter] = []
        if not self._fits(waiter, num_tokens):
            displaced = self._displaced(waiter, num_tokens)
            for each in displaced:
                self.remove(each)
        found = self._classes.setdefault(waiter.priority, _Class(self._quantum))
        found.flows.setdefault(waiter.tenant, _Flow()).add(waiter, num_tokens)
        self.num_requests += 1
        self.num_tokens += num_tokens
        return displaced

    def pop(self) -> Waiter | None:
        """Who goes on next."""
        if not self._classes:
            return None
        priority = min(self._classes)
        waiter, num_tokens = self._classes[priority].pop()
        self._forget(priority, num_tokens)
        return waiter

    def remove(self, waiter: Waiter) -> bool:
        """It does not wait any more; False where it did not."""
        found = self._classes.get(waiter.priority)
        flow = found.flows.get(waiter.tenant) if found is not None else None
        if found is None or flow is None or waiter not in flow.waiters:
            return False
        self._forget(waiter.priority, found.remove(waiter))
        return True

    def tokens_ahead(self, waiter: Waiter) -> float:
        """Tokens that go on before `waiter` would, if nobody came after it: of the classes before
        it, its tenant's own, and of others in its class what their weights give them meanwhile.
        """
        ahead = 0.0
        for priority, each in self._classes.items():
            if priority < waiter.priority:
                ahead += sum(flow.num_tokens for flow in each.flows.values())
        found = self._classes.get(waiter.priority)
        if found is None:
            return ahead
        own = found.flows.get(waiter.tenant)
        num_own = own.num_tokens if own is not None else 0
        share = (num_own + waiter.num_tokens) / waiter.weight
        others = (flow for name, flow in found.flows.items() if name != waiter.tenant)
        return ahead + num_own + sum(min(each.num_tokens, share * each.weight) for each in others)

    def lengths(self) -> Iterator[tuple[str, int]]:
        """Requests that each tenant has waiting, by class."""
        for each in self._classes.values():
            for name, flow in each.flows.items():
                yield name, len(flow.waiters)

    def check(self) -> None:
        """Asserts what holds between calls."""
        flows = [flow for each in self._classes.values() for flow in each.flows.values()]
        assert all(each.flows for each in self._classes.values())
        assert all(flow.waiters for flow in flows)
        assert all(flow.num_tokens == sum(flow.waiters.values()) for flow in flows)
        assert self.num_requests == sum(len(flow.waiters) for flow in flows) <= self.max_requests
        assert self.num_tokens == sum(flow.num_tokens for flow in flows) <= self.max_tokens

    def _fits(self, waiter: Waiter, num_tokens: int, num_gone: int = 0, num_freed: int = 0) -> bool:
        """Whether there is place for it once `num_gone` of `num_freed` tokens have left."""
        share = _LOW_SHARE if waiter.priority > _NORMAL else 1.0
        return (
            self.num_requests - num_gone + 1 <= self.max_requests * share
            and self.num_tokens - num_freed + num_tokens <= self.max_tokens * share
        )

    def _displaced(self, waiter: Waiter, num_tokens: int) -> list[Waiter]:
        """The newest of the longest flow, as many as must go. Raises `QueueFullError`."""
        last = max(self._classes, default=waiter.priority)
        if last < waiter.priority or not self._classes:
            raise QueueFullError
        flows = self._classes[last].flows
        longest = max(flows.values(), key=lambda flow: flow.length)
        own = flows.get(waiter.tenant, _Flow())
        least = 0.0
        if last == waiter.priority:
            least = (own.num_tokens + num_tokens) / waiter.weight
            if own is longest:
                raise QueueFullError
        victims: list[Waiter] = []
        num_freed = 0
        for each, tokens in reversed(longest.waiters.items()):
            if (longest.num_tokens - num_freed) / longest.weight <= least:
                break
            victims.append(each)
            num_freed += tokens
            if self._fits(waiter, num_tokens, len(victims), num_freed):
                return victims
        raise QueueFullError

    def _forget(self, priority: int, num_tokens: int) -> None:
        self.num_requests -= 1
        self.num_tokens -= num_tokens
        if not self._classes[priority].flows:
            del self._classes[priority]
