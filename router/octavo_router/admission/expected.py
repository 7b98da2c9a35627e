"""When a request can be expected to begin: what deadlines are held against."""

from collections import deque

from octavo_router.decisions import PromptKey, num_cached
from octavo_router.deployment import Deployment

_WINDOW_S = 10.0


def prefill_seconds(deployment: Deployment, model: str | None, key: PromptKey) -> float | None:
    """Until the first token of a request that is sent now, on the replica where that is soonest.
    None where no replica has measured its rate yet, or the prompt's length is not known.
    """
    if not key.num_all_tokens:
        return None
    depths = deployment.index.match(key.hashes) if key.hashes else {}
    expected = [
        (
            deployment.loads.num_queued_tokens(record.incarnation)
            + key.num_all_tokens
            - num_cached(record, key, depths)
        )
        / record.prefill_tokens_per_s
        for record in deployment.replicas.usable(model)
        if record.prefill_tokens_per_s > 0
    ]
    return min(expected, default=None)


class DrainRate:
    """How fast a queue moves: by the tokens that left it in the last ten seconds without a gap."""

    def __init__(self) -> None:
        self._left: deque[tuple[float, int]] = deque()
        self._since = 0.0
        self._num_tokens = 0

    def begin(self, now: float) -> None:
        """The queue was empty until now."""
        self._left.clear()
        self._since, self._num_tokens = now, 0

    def left(self, now: float, num_tokens: int) -> None:
        self._left.append((now, num_tokens))
        self._num_tokens += num_tokens
        while self._left[0][0] < now - _WINDOW_S:
            self._num_tokens -= self._left.popleft()[1]

    def seconds(self, num_tokens: float, now: float) -> float | None:
        """That `num_tokens` take to leave; None: not known yet."""
        elapsed = min(now - self._since, _WINDOW_S)
        if not self._num_tokens or elapsed <= 0:
            return None
        return num_tokens * elapsed / self._num_tokens
