"""Least work: fewest tokens queued, then fewest sequences running; the prefix cache is ignored."""

import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest


class LeastLoad:
    name: ClassVar[str] = "least-load"
    reads_session: ClassVar[bool] = False
    weighs_adapters: ClassVar[bool] = False

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        loads = [(replica.num_queued_tokens, replica.num_running) for replica in replicas]
        least = min(loads)
        best = [replica for replica, load in zip(replicas, loads, strict=True) if load == least]
        return Choice(self._rng.choice(best), tuple(float(queued) for queued, _ in loads))
