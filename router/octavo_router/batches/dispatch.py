"""Which line is sent when: the order of lines, and how many may be under way.

Lines of one model share its room: as many are under way as its replicas have places that online
requests leave free. Those of the batch of the lowest rank go first, and of these, the ones that
begin alike go one after the other, so that they find that beginning in a replica's cache.

A model's lines wait in one lane for each owner. Where a line meets a limit or finds no replica, it
goes back into its lane, which pauses, the longer the more often; the lanes of others go on.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

_PREFIX_CHARS = 512
_PROMPTS = ("messages", "prompt", "input", "queries", "query", "data_1", "text_1")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


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


@dataclass(slots=True)
class _Lane:
    """paused_until: in the time of the event loop. pause_s: the last one, 0 after a success."""

    waiting: list[_Waiting] = field(default_factory=list)
    paused_until: float = 0.0
    pause_s: float = 0.0

    def first(self) -> _Waiting | None:
        while self.waiting and self.waiting[0].turn.done():
            heapq.heappop(self.waiting)  # cancelled
        return self.waiting[0] if self.waiting else None

    def is_over(self, now: float) -> bool:
        """Nothing waits, and no pause has to be remembered."""
        return self.paused_until <= now and self.first() is None

    def pause(self, now: float, at_least_s: float) -> float:
        """How long. Lines that were under way together pause it once."""
        if now >= self.paused_until:
            longer = min(max(_FIRST_PAUSE_S, 2 * self.pause_s), _LONGEST_PAUSE_S)
            self.pause_s = max(longer, min(at_least_s, _LONGEST_PAUSE_S))
            self.paused_until = now + self.pause_s
        return self.paused_until - now


@dataclass(slots=True)
class _Model:
    """lanes: by owner."""

    lanes: dict[str, _Lane] = field(default_factory=dict)
    num_open: int = 0

    def next_lane(self, now: float) -> _Lane | None:
        """The lane whose first line is to go next; None without one."""
        firsts = [
            (first, lane)
            for lane in self.lanes.values()
            if lane.paused_until <= now and (first := lane.first()) is not None
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
        return sum(len(lane.waiting) for lane in lanes)

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
            await self._turn(model, owner, rank, prefix, number)
            lane = self._models[model].lanes[owner]
            try:
                answer = await work()
            except BusyError as error:
                loop = asyncio.get_running_loop()
                pause_s = lane.pause(loop.time(), error.pause_s)
                loop.call_later(pause_s, self.fill, model)
            else:
                lane.pause_s = 0.0
                return answer
            finally:
                self._give_back(model)

    async def _turn(self, name: str, owner: str, rank: int, prefix: str, number: int) -> None:
        """Waits for a place, which is to be given back."""
        model = self._models.setdefault(name, _Model())
        lane = model.lanes.setdefault(owner, _Lane())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(lane.waiting, _Waiting(rank, prefix, number, turn))
        self.fill(name)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same moment
                model.num_open -= 1
            self.fill(name)
            raise

    def _give_back(self, name: str) -> None:
        self._models[name].num_open -= 1
        self.fill(name)

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
                model.num_open += 1
                first.turn.set_result(None)
        if not model.num_open and all(lane.is_over(now) for lane in model.lanes.values()):
            del self._models[name]


def prefix_of(body: dict[str, Any]) -> str:
    """How a request begins, for the order of lines: its first messages or its prompt."""
    prompt: Any = next((body[name] for name in _PROMPTS if body.get(name)), "")
    if isinstance(prompt, list):
        prompt = "\n".join(_text(each) for each in prompt[:4])
    return str(prompt)[:_PREFIX_CHARS]


def _text(part: Any) -> str:
    if isinstance(part, dict):
        return str(part.get("content", ""))[:_PREFIX_CHARS]
    return str(part)[:_PREFIX_CHARS]
