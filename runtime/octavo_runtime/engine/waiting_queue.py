"""Sequences that wait for admission, in the order in which they will be admitted."""

import heapq
from typing import Generic, Literal, Protocol, TypeVar

from octavo_protocol.priorities import is_background


class _Request(Protocol):
    @property
    def priority(self) -> int: ...


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
    """A heap by (priority, arrival order); with fcfs every priority counts as equal, but background
    requests come after all others.

    A preempted sequence keeps its arrival order, so it comes back before younger ones. Lower
    priority values go first. `num_tokens` is the number of tokens still to be computed.
    """

    def __init__(self, policy: Literal["fcfs", "priority"]) -> None:
        self._by_priority = policy == "priority"
        self._heap: list[tuple[int, int, Item]] = []
        self._live: dict[str, Item] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._live)

    def key(self, sequence: Item) -> tuple[int, int]:
        """Rank in the queue; the running sequence with the greatest key is preempted first."""
        priority = sequence.request.priority
        return (priority if self._by_priority else is_background(priority), sequence.order)

    def push(self, sequence: Item) -> None:
        self._live[sequence.request_id] = sequence
        self.num_tokens += sequence.num_tokens
        heapq.heappush(self._heap, (*self.key(sequence), sequence))

    def peek(self) -> Item:
        """The next one. Raises IndexError when empty."""
        while self._live.get(self._heap[0][2].request_id) is not self._heap[0][2]:
            heapq.heappop(self._heap)  # removed meanwhile
        return self._heap[0][2]

    def pop(self) -> Item:
        sequence = self.peek()
        heapq.heappop(self._heap)
        self._forget(sequence)
        return sequence

    def remove(self, request_id: str) -> Item | None:
        """Takes a sequence out wherever it stands; None if it is not here."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._forget(sequence)
        return sequence

    def _forget(self, sequence: Item) -> None:
        del self._live[sequence.request_id]
        self.num_tokens -= sequence.num_tokens
