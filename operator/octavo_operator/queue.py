"""Whose turn it is: ModelDeployments wait here by name, each at most once, never two turns at once.

`Schedule` is the rule, with time as a number that it is given; `ReconcileQueue` is the same on
asyncio's clock. A name that is added during its own turn gets another turn afterwards, so nothing
that happens in between is missed.
"""

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

DEBOUNCE_S = 0.05
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0


class Key(NamedTuple):
    """A ModelDeployment's name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(slots=True)
class _State:
    due: float | None = None
    ticket: int = -1  # the heap entry that counts; older ones are passed over
    is_running: bool = False
    failures: int = 0
    retry_at: float = 0.0


class Schedule:
    """When which key is due. Times are seconds of any clock that does not run backwards."""

    def __init__(self) -> None:
        self._states: dict[Key, _State] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._tickets = itertools.count()

    def add(self, key: Key, due: float) -> None:
        """`key` gets a turn at `due` or, if it has one coming before that, then."""
        state = self._states.setdefault(key, _State())
        if state.due is None or due < state.due:
            state.due, state.ticket = due, next(self._tickets)
            if not state.is_running:
                heapq.heappush(self._heap, (due, state.ticket, key))

    def take(self, now: float) -> Key | None:
        """The key that has waited longest of those that are due; its turn begins."""
        self._discard_stale()
        if not self._heap or self._heap[0][0] > now:
            return None
        key = heapq.heappop(self._heap)[2]
        state = self._states[key]
        state.due, state.is_running = None, True
        return key

    def finish(self, key: Key, now: float, *, look_again_s: float | None = None) -> None:
        """The turn of `key` ended well; it gets another one after `look_again_s`."""
        state = self._states[key]
        state.is_running, state.failures, state.retry_at = False, 0, 0.0
        if look_again_s is not None:
            self.add(key, now + look_again_s)
        self._resume(key, state)

    def fail(self, key: Key, now: float) -> float:
        """The turn of `key` failed; returns the seconds until the next.

        They double from retry to retry. Turns that came before a retry was due, because something
        happened, do not count.
        """
        state = self._states[key]
        if now >= state.retry_at:
            delay = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(state.failures, 30))
            state.failures += 1
            state.retry_at = now + delay
        state.is_running = False
        self.add(key, state.retry_at)
        self._resume(key, state)
        return state.retry_at - now

    @property
    def next_due(self) -> float | None:
        """When the next key that waits is due."""
        self._discard_stale()
        return self._heap[0][0] if self._heap else None

    def num_due(self, now: float) -> int:
        """Keys that could have their turn now."""
        return sum(
            state.due is not None and state.due <= now and not state.is_running
            for state in self._states.values()
        )

    def _resume(self, key: Key, state: _State) -> None:
        if state.due is not None:
            state.ticket = next(self._tickets)
            heapq.heappush(self._heap, (state.due, state.ticket, key))
        else:
            del self._states[key]

    def _discard_stale(self) -> None:
        while self._heap:
            _, ticket, key = self._heap[0]
            state = self._states.get(key)
            if state is not None and state.ticket == ticket and not state.is_running:
                return
            heapq.heappop(self._heap)


class ReconcileQueue:
    """A `Schedule` on a clock. All calls are made on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule = Schedule()
        self._clock = clock
        self._changed = asyncio.Event()
        self._turns_since: dict[Key, float] = {}
        self._is_closed = False

    def add(self, key: Key, delay_s: float = DEBOUNCE_S) -> None:
        """`key` gets a turn after `delay_s`, or before."""
        self._schedule.add(key, self._clock() + delay_s)
        self._changed.set()

    async def take(self) -> Key | None:
        """Waits for the next key that is due; its turn begins. None: the queue was closed."""
        while not self._is_closed:
            self._changed.clear()
            if (key := self._schedule.take(self._clock())) is not None:
                self._turns_since[key] = self._clock()
                return key
            await self._wait()
        return None

    def close(self) -> None:
        """No turn begins any more."""
        self._is_closed = True
        self._changed.set()

    def finish(self, key: Key, *, look_again_s: float | None = None) -> None:
        self._turns_since.pop(key)
        self._schedule.finish(key, self._clock(), look_again_s=look_again_s)
        self._changed.set()

    def fail(self, key: Key) -> float:
        """Returns the seconds until `key` is tried again."""
        self._turns_since.pop(key)
        delay = self._schedule.fail(key, self._clock())
        self._changed.set()
        return delay

    def __len__(self) -> int:
        """Keys that are due and wait for a worker."""
        return self._schedule.num_due(self._clock())

    @property
    def next_due(self) -> float | None:
        """When the next key that waits is due."""
        return self._schedule.next_due

    @property
    def num_running(self) -> int:
        return len(self._turns_since)

    @property
    def longest_turn_s(self) -> float:
        """How long the oldest turn that has not ended goes on."""
        return max((self._clock() - since for since in self._turns_since.values()), default=0.0)

    async def _wait(self) -> None:
        due = self.next_due
        timeout = None if due is None else max(0.0, due - self._clock())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()
