"""Turns of resources of one kind, one after the other, and what happens when one fails.

An API server that refuses or is away, and a defect of our own, end the turn and nothing else: the
resource is tried again later and later, the others go on.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from octavo_operator.cluster import ApiError, ApiUnreachableError
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.queue import Key, ReconcileQueue
from octavo_protocol.errors import OctavoError

logger = logging.getLogger(__name__)


class RefusedError(OctavoError):
    """The API server refused some of what was wanted."""


class Turns(ABC):
    """check: raises when this process may no longer act."""

    def __init__(
        self, queue: ReconcileQueue, metrics: OperatorMetrics, check: Callable[[], None]
    ) -> None:
        self._queue = queue
        self._metrics = metrics
        self._check = check

    async def work(self) -> None:
        """Takes turn after turn, until the queue is closed."""
        while (key := await self._queue.take()) is not None:
            self._check()
            with self._metrics.reconcile_seconds.time():
                await self.turn(key)

    async def turn(self, key: Key) -> None:
        """One turn of `key`, which the queue has given. Raises nothing."""
        try:
            look_again_s = await self._reconcile(key)
        except RefusedError as error:
            self._fail(key, "api", error.message)
        except ApiError as error:
            self._fail(key, "api", error.message)
        except ApiUnreachableError as error:
            self._fail(key, "unreachable", error.message)
        except Exception:
            logger.exception("%s: a defect of the operator", key)
            self._fail(key, "defect", "see the traceback")
        else:
            self._queue.finish(key, look_again_s=look_again_s)

    def _fail(self, key: Key, cause: str, message: str) -> None:
        self._metrics.reconcile_errors.labels(cause).inc()
        delay = self._queue.fail(key)
        logger.warning("%s: %s; tried again in %.0f s", key, message, delay)

    @abstractmethod
    async def _reconcile(self, key: Key) -> float | None:
        """Does what is to be done; returns when to look again."""


def sooner(*times: float | None) -> float | None:
    return min((each for each in times if each is not None), default=None)
