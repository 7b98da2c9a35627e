"""Bounds how many retries the router adds to the load, however many requests fail."""

import time
from collections.abc import Callable

_RATIO = 0.2  # retries per request
_MIN_PER_S = 10.0
_BURST = 100.0


class RetryBudget:
    """A token bucket: each request adds a fifth of a retry, each second ten, at most a hundred.

    When every replica fails, clients soon get an error instead of a multiple of the load.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = _BURST
        self._filled_at = clock()

    def request(self) -> None:
        """A request came."""
        self._tokens = min(_BURST, self._tokens + _RATIO)

    def retry(self) -> bool:
        """Takes one retry, if there is one."""
        now = self._clock()
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * _MIN_PER_S)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
