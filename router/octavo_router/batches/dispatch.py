"""Which line is sent when: the order of lines, and how many may be under way.

Lines of one model share its room: as many are under way as its replicas have places that online
requests leave free. Those of the batch of the lowest rank go first, and of these, the ones that
begin alike go one after the other, so that they find that beginning in a replica's cache. The first
one of a long beginning gets a head start (`head_start`).

A model's lines wait in one lane for each owner. Where a line meets a limit or finds no replica, it
goes back into its lane, from which then only so many go at a time as were under way beside it (one
more after every few successes); where there were none, the lane pauses, the longer the more often.
The lanes of others go on.
"""

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from octavo_router.batches.head_start import HeadStarts

_PREFIX_CHARS = 512
_PROMPTS = ("messages", "prompt", "input", "queries", "query", "data_1", "text_1")
_PREFIX_ITEMS = 256  # token ids, or messages
_HEAD_START_S = 1.0  # at most
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_GROWTH = 0.25  # of a lane's limit with every success


class BusyError(Exception):
    """There is no capacity for a line now. pause_s: how long at least."""

    def __init__(self, pause_s: float = 0.0) -> None:
        super().__init__(pause_s)
        self.pause_s = pause_s


@dataclass(order=True, slots=True)
class _Waiting:
    rank: int
    prefix: str
    number: int
    turn: asyncio.Future[None] = field(compare=False)

    @property
    def beginning(self) -> str:
        """What is long enough to be worth a head start; "" without."""
        return self.prefix if len(self.prefix) == _PREFIX_CHARS else ""


@dataclass(slots=True)
class _Lane:
    """num_open: lines under way. limit: of them. paused_until: in the time of the event loop.
    pause_s: the last one, 0 after a success.
    """

    waiting: list[_Waiting] = field(default_factory=list)
    head_starts: HeadStarts[_Waiting] = field(default_factory=HeadStarts)
    num_open: int = 0
    limit: float = math.inf
    paused_until: float = 0.0
    pause_s: float = 0.0

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + self.head_starts.num_held

    def first(self) -> _Waiting | None:
        """The next one to go; None without one that may."""
        while self.waiting:
            first = self.waiting[0]
            is_cancelled = first.turn.done()
            if not is_cancelled and not self.head_starts.hold(first.beginning, first):
                return first
            heapq.heappop(self.waiting)
        return None

    def end_head_start(self, beginning: str) -> None:
        for held in self.head_starts.end(beginning):
            heapq.heappush(self.waiting, held)

    def is_over(self, now: float) -> bool:
        """Nothing is under way or waits, and no pause has to be remembered."""
        is_busy = self.num_open > 0 or self.paused_until > now
        return not is_busy and self.first() is None and not self.head_starts.num_held

    def next(self, now: float) -> _Waiting | None:
        """As `first`, where the lane's limit and pause let one go."""
        return self.first() if self.num_open < self.limit and self.paused_until <= now else None

    def succeeded(self) -> None:
        self.pause_s = 0.0
        self.limit += _GROWTH

    def refused(self, now: float, at_least_s: float) -> float | None:
        """A line met a limit, and is not under way any more. How long the lane pauses; None: until
        another one of its lines has ended.
        """
        self.limit = max(1, self.num_open)
        if self.num_open:
            return None
        longer = min(max(_FIRST_PAUSE_S, 2 * self.pause_s), _LONGEST_PAUSE_S)
        self.pause_s = max(longer, min(at_least_s, _LONGEST_PAUSE_S))
        self.paused_until = now + self.pause_s
        return self.pause_s


@dataclass(slots=True)
class _Model:
    """lanes: by owner."""

    lanes: dict[str, _Lane] = field(default_factory=dict)

    @property
    def num_open(self) -> int:
        return sum(lane.num_open for lane in self.lanes.values())

    def next_lane(self, now: float) -> _Lane | None:
        """The lane whose first line is to go next; None without one."""
        firsts = [
            (first, lane) for lane in self.lanes.values() if (first := lane.next(now)) is not None
        ]
        return min(firsts, key=lambda each: each[0])[1] if firsts else None


class Dispatcher:
    """Belongs to one event loop. room: lines that may be under way for a model, at this moment."""

    def __init__(self, room: Callable[[str, int], int]) -> None:
        self._room = room
        self._models: dict[str, _Model] = {}
        self._num_seen = 0

    @property
    def num_waiting(self) -> int:
        lanes = [lane for model in self._models.values() for lane in model.lanes.values()]
        return sum(lane.num_waiting for lane in lanes)

    async def run(
        self,
        model: str,
        rank: int,
        prefix: str,
        work: Callable[[], Awaitable[Any]],
        *,
        owner: str = "",
    ) -> Any:
        """What `work` gives, when its turn has come; another turn follows a `BusyError`."""
        self._num_seen += 1
        number = self._num_seen
        while True:
            waiting = await self._turn(model, owner, rank, prefix, number)
            lane = self._models[model].lanes[owner]
            refusal: BusyError | None = None
            try:
                answer = await work()
                lane.succeeded()
                return answer
            except BusyError as error:
                refusal = error
            finally:
                lane.num_open -= 1
                lane.end_head_start(waiting.beginning)
                if refusal is not None:
                    self._refused(model, lane, refusal)
                self.fill(model)

    async def _turn(self, name: str, owner: str, rank: int, prefix: str, number: int) -> _Waiting:
        """Waits for a place, which is to be given back."""
        model = self._models.setdefault(name, _Model())
        lane = model.lanes.setdefault(owner, _Lane())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(rank, prefix, number, turn)
        heapq.heappush(lane.waiting, waiting)
        self.fill(name)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same moment
                lane.num_open -= 1
                lane.end_head_start(waiting.beginning)
            self.fill(name)
            raise
        return waiting

    def _refused(self, name: str, lane: _Lane, refusal: BusyError) -> None:
        loop = asyncio.get_running_loop()
        if (pause_s := lane.refused(loop.time(), refusal.pause_s)) is not None:
            loop.call_later(pause_s, self.fill, name)

    def _limit_head_start(self, name: str, lane: _Lane, beginning: str) -> None:
        def end() -> None:
            lane.end_head_start(beginning)
            self.fill(name)

        asyncio.get_running_loop().call_later(_HEAD_START_S, end)

    def fill_all(self) -> None:
        """Room may have come up anywhere."""
        for name in list(self._models):
            self.fill(name)

    def fill(self, name: str) -> None:
        """Gives turns while there is room."""
        model = self._models.get(name)
        if model is None:
            return
        now = asyncio.get_running_loop().time()
        if model.next_lane(now) is not None:
            room = self._room(name, model.num_open)
            while model.num_open < room and (lane := model.next_lane(now)) is not None:
                first = heapq.heappop(lane.waiting)
                lane.num_open += 1
                if lane.head_starts.begin(first.beginning):
                    self._limit_head_start(name, lane, first.beginning)
                first.turn.set_result(None)
        if all(lane.is_over(now) for lane in model.lanes.values()):
            del self._models[name]


def prefix_of(body: dict[str, Any]) -> str:
    """How a request begins, for the order of lines: its first messages or its prompt."""
    prompt: Any = next((body[name] for name in _PROMPTS if body.get(name)), "")
    if isinstance(prompt, list):
        prompt = "\n".join(_text(each) for each in prompt[:_PREFIX_ITEMS])
    return str(prompt)[:_PREFIX_CHARS]


def _text(part: Any) -> str:
    if isinstance(part, dict):
        return str(part.get("content", ""))[:_PREFIX_CHARS]
    return str(part)[:_PREFIX_CHARS]
