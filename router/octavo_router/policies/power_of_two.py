"""The less loaded of two replicas drawn at random.

Nearly as even as asking all, and many routers whose knowledge of loads is a second old do not all
pick the same least loaded replica. Source: Mitzenmacher, "The power of two choices in randomized
load balancing" (2001).
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest


class PowerOfTwo:
    name: ClassVar[str] = "power-of-two"
    reads_session: ClassVar[bool] = False
    weighs_adapters: ClassVar[bool] = False

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        drawn = self._rng.sample(replicas, min(2, len(replicas)))
        best = min(drawn, key=lambda each: (each.num_queued_tokens, each.num_running))
        return Choice(best, tuple(float(replica.num_queued_tokens) for replica in replicas))
