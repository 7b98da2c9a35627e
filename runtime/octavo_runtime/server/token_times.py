"""When the tokens of running requests come: time to the first one, and the gaps between them.

Taken from the engine's steps, not from a request's outputs: those of an answer that is not streamed
come only when all is over.
"""

import time
from collections.abc import Callable, Iterator

from octavo_runtime.engine.messages import StepOutputs


class TokenTimes:
    """on_first gets the seconds from a request's start to a sequence's first token, on_gap those
    between two steps that gave a sequence tokens.
    """

    def __init__(self, on_first: Callable[[float], None], on_gap: Callable[[float], None]) -> None:
        self._on_first = on_first
        self._on_gap = on_gap
        self._starts: dict[str, float] = {}
        self._latest: dict[str, float] = {}

    def start(self, request_id: str, n: int) -> None:
        """A request of `n` sequences is handed to the engine now."""
        now = time.monotonic()
        self._starts.update((child, now) for child in _sequence_ids(request_id, n))

    def took(self, step: StepOutputs) -> None:
        now = time.monotonic()
        for output in step.outputs:
            if not output.new_token_ids:
                continue
            identifier = output.request_id
            latest = self._latest.get(identifier)
            if latest is not None:
                self._on_gap(now - latest)
            elif identifier in self._starts:
                self._on_first(now - self._starts[identifier])
            else:
                continue
            self._latest[identifier] = now

    def end(self, request_id: str, n: int) -> None:
        """The request is over, however it ended."""
        for child in _sequence_ids(request_id, n):
            self._starts.pop(child, None)
            self._latest.pop(child, None)


def _sequence_ids(request_id: str, n: int) -> Iterator[str]:
    """The ids that `InputProcessor` gives the sequences of a request."""
    if n == 1:
        yield request_id
    else:
        yield from (f"{request_id}_{index}" for index in range(n))
