"""Sequences that wait for admission, in the order in which they will be admitted."""

import heapq
from collections.abc import Collection, Iterable, Iterator
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

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
_Entry: TypeAlias = tuple[int, int, int, Item]


class WaitingQueue(Generic[Item]):
    """In the order of (priority, arrival); with fcfs every priority counts as equal, but background
    requests come after all others.

    A preempted sequence keeps its arrival order, so it comes back before younger ones. Lower
    priority values go first. `num_tokens` is the number of tokens still to be computed;
    `num_background` and `num_background_tokens` are the background requests' part.

    One heap has all, and each adapter one of its own: where the first cannot run, those of other
    adapters are found without a look at all that wait.
    """

    def __init__(self, policy: Literal["fcfs", "priority"]) -> None:
        self._by_priority = policy == "priority"
        self._live: dict[str, _Entry[Item]] = {}
        self._all: list[_Entry[Item]] = []
        self._of_adapter: dict[str, list[_Entry[Item]]] = {}  # each begins with a live one
        self._num_pushed = 0
        self.num_tokens = 0
        self.num_background = 0
        self.num_background_tokens = 0

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Item]:
        return (entry[-1] for entry in self._live.values())

    @property
    def adapters(self) -> Collection[str]:
        """Those that somebody waits with; empty for none."""
        return self._of_adapter.keys()

    def key(self, sequence: Item) -> tuple[int, int]:
        """Rank in the queue; the running sequence with the greatest key is preempted first."""
        priority = sequence.request.priority
        return (priority if self._by_priority else is_background(priority), sequence.order)

    def push(self, sequence: Item) -> None:
        # Numbered: one that was removed may lie in a heap still when it comes back.
        entry = (*self.key(sequence), self._num_pushed, sequence)
        self._num_pushed += 1
        self._live[sequence.request_id] = entry
        self._count(sequence, 1)
        heapq.heappush(self._all, entry)
        heapq.heappush(self._of_adapter.setdefault(sequence.request.adapter, []), entry)

    def peek(self) -> Item | None:
        """The next one; None: nobody waits."""
        self._drop_dead(self._all)
        return self._all[0][-1] if self._all else None

    def peek_of(self, adapters: Iterable[str]) -> Item | None:
        """The next one of those with one of these adapters."""
        heads = (self._of_adapter[each][0] for each in adapters if each in self._of_adapter)
        first = min(heads, default=None)
        return None if first is None else first[-1]

    def remove(self, request_id: str) -> Item | None:
        """Takes a sequence out wherever it stands; None if it is not here."""
        entry = self._live.pop(request_id, None)
        if entry is None:
            return None
        sequence = entry[-1]
        self._count(sequence, -1)
        heap = self._of_adapter[sequence.request.adapter]
        self._drop_dead(heap)
        if not heap:
            del self._of_adapter[sequence.request.adapter]
        return sequence

    def _count(self, sequence: Item, sign: int) -> None:
        self.num_tokens += sign * sequence.num_tokens
        if is_background(sequence.request.priority):
            self.num_background += sign
            self.num_background_tokens += sign * sequence.num_tokens

    def _drop_dead(self, heap: list[_Entry[Item]]) -> None:
        """Those in front that were removed."""
        while heap and self._live.get(heap[0][-1].request_id) is not heap[0]:
            heapq.heappop(heap)
