"""Which line is sent when: the order of lines, and how many may be under way.

Lines of one model wait in one lane: those of the batch of the lowest rank go first, and of these,
the ones that begin alike go one after the other, so that they find that beginning in a replica's
cache.
As many are under way as the model's replicas have places that online requests leave free.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

_PREFIX_CHARS = 512
_PROMPTS = ("messages", "prompt", "input", "queries", "query", "data_1", "text_1")


@dataclass(order=True, slots=True)
class _Waiting:
    rank: int
    prefix: str
    number: int
    turn: asyncio.Future[None] = field(compare=False)


@dataclass(slots=True)
class _Lane:
    waiting: list[_Waiting] = field(default_factory=list)
    num_open: int = 0


class Dispatcher:
    """Belongs to one event loop. room: lines that may be under way for a model, at this moment."""

    def __init__(self, room: Callable[[str, int], int]) -> None:
        self._room = room
        self._lanes: dict[str, _Lane] = {}
        self._num_seen = 0

    @property
    def num_waiting(self) -> int:
        return sum(len(lane.waiting) for lane in self._lanes.values())

    async def run(
        self, model: str, rank: int, prefix: str, work: Callable[[], Awaitable[Any]]
    ) -> Any:
        """What `work` gives, when its turn has come."""
        lane = self._lanes.setdefault(model, _Lane())
        self._num_seen += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(lane.waiting, _Waiting(rank, prefix, self._num_seen, turn))
        self.fill(model)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same moment
                lane.num_open -= 1
            self.fill(model)
            raise
        try:
            return await work()
        finally:
            lane.num_open -= 1
            self.fill(model)

    def fill_all(self) -> None:
        """Room may have come up anywhere."""
        for model in list(self._lanes):
            self.fill(model)

    def fill(self, model: str) -> None:
        """Gives turns while there is room."""
        lane = self._lanes[model]
        while lane.waiting and lane.waiting[0].turn.done():
            heapq.heappop(lane.waiting)  # cancelled
        if lane.waiting:
            room = self._room(model, lane.num_open)
            while lane.waiting and lane.num_open < room:
                first = heapq.heappop(lane.waiting)
                if not first.turn.done():
                    lane.num_open += 1
                    first.turn.set_result(None)
        if not lane.waiting and not lane.num_open:
            del self._lanes[model]


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
