"""Lowest expected time to first token.

    cost = (tokens queued ahead + prompt tokens not cached) / prefill rate
         + sequences running / decode rate

The first term is how long the replica computes before this request's first token; the second is one
round of the decodes that share its steps. A cached prefix is worth exactly the seconds that it
saves, so a hot prefix spreads as soon as waiting for its holder costs more than computing it again.
Costs within 1 ms of the best count as equal; among equals the choice is random.
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest

_TIE_S = 0.001


class ExpectedTTFT:
    name: ClassVar[str] = "expected-ttft"

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        costs = tuple(expected_ttft_s(request, replica) for replica in replicas)
        limit = min(costs) + _TIE_S
        best = [replica for replica, cost in zip(replicas, costs, strict=True) if cost <= limit]
        return Choice(self._rng.choice(best), costs)


def expected_ttft_s(request: RouteRequest, replica: ReplicaView) -> float:
    num_uncached = max(0, request.num_prompt_tokens - replica.num_cached_tokens)
    prefill_s = (replica.num_queued_tokens + num_uncached) / replica.prefill_tokens_per_s
    return prefill_s + replica.num_running / replica.decode_tokens_per_s
