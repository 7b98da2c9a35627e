"""Compares predicted with actual cached tokens, replica by replica."""

from collections import defaultdict

MAX_LIES = 5


class PredictionTrust:
    """A replica that reuses less than promised, five requests in a row, has entries that are not
    true: `report` says so once, and the count begins anew.

    One block of difference is no lie: eviction may have been faster than its event.
    """

    def __init__(self) -> None:
        self._lies: defaultdict[str, int] = defaultdict(int)

    def report(self, incarnation: str, predicted: int, actual: int, block_size: int) -> bool:
        """True when the replica's entries should be forgotten."""
        if predicted - actual <= block_size:
            self._lies.pop(incarnation, None)
            return False
        self._lies[incarnation] += 1
        if self._lies[incarnation] < MAX_LIES:
            return False
        del self._lies[incarnation]
        return True

    def drop(self, incarnation: str) -> None:
        """The replica is gone."""
        self._lies.pop(incarnation, None)
