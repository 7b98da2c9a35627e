"""Sequences that wait for admission, in the order in which they will be admitted."""

import heapq
from collections.abc import Callable
from typing import Generic, Literal, Protocol, TypeVar

from octavo_protocol.priorities import is_background


class _Request(Protocol):
    @property
    def priority(self) -> int: ...
    @property
    def adapter(self) -> str: ...


class Queued(Protocol):
    """What may wait. order: place in arrival order. num_tokens: still to be computed."""

    order: int

    @property
    def request(self) -> _Request: ...
    @property
    def request_id(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...


Item = TypeVar("Item", bound=Queued)


class WaitingQueue(Generic[Item]):
    """Heaps by (priority, arrival order), one for each adapter, so that those whose adapter cannot
    run stand in nobody's way; with fcfs every priority counts as equal, but background requests
    come after all others.

    A preempted sequence keeps its arrival order, so it comes back before younger ones. Lower
    priority values go first. `num_tokens` is the number of tokens still to be computed.
    """

    def __init__(self, policy: Literal["fcfs", "priority"]) -> None:
        self._by_priority = policy == "priority"
        self._heaps: dict[str, list[tuple[int, int, Item]]] = {}  # each begins with a live one
        self._live: dict[str, Item] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def adapters(self) -> list[str]:
        """Those that somebody waits with."""
        return [adapter for adapter in self._heaps if adapter]

    def key(self, sequence: Item) -> tuple[int, int]:
        """Rank in the queue; the running sequence with the greatest key is preempted first."""
        priority = sequence.request.priority
        return (priority if self._by_priority else is_background(priority), sequence.order)

    def push(self, sequence: Item) -> None:
        self._live[sequence.request_id] = sequence
        self.num_tokens += sequence.num_tokens
        heap = self._heaps.setdefault(sequence.request.adapter, [])
        heapq.heappush(heap, (*self.key(sequence), sequence))

    def peek(self, may_run: Callable[[str], bool] | None = None) -> Item | None:
        """The next one, of those whose adapter may run; None: there is none. may_run: all may."""
        heads = (
            heap[0] for adapter, heap in self._heaps.items() if may_run is None or may_run(adapter)
        )
        first = min(heads, default=None)
        return None if first is None else first[2]

    def remove(self, request_id: str) -> Item | None:
        """Takes a sequence out wherever it stands; None if it is not here."""
        sequence = self._live.pop(request_id, None)
        if sequence is not None:
            self.num_tokens -= sequence.num_tokens
            self._drop_dead(sequence.request.adapter)
        return sequence

    def _drop_dead(self, adapter: str) -> None:
        """Those in front that were removed."""
        heap = self._heaps[adapter]
        while heap and self._live.get(heap[0][2].request_id) is not heap[0][2]:
            heapq.heappop(heap)
        if not heap:
            del self._heaps[adapter]
