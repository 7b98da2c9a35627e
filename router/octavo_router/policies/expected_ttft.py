"""Lowest expected time to first token, with a price on what fills caches.

    cost = (tokens queued ahead + 4 x prompt tokens not cached + tokens sent of late / 20)
           / prefill rate
         + sequences running / decode rate
         + 4 x seconds to load the request's adapter

Queue and uncached tokens are how long the replica computes before this request's first token; the
last term is one round of the decodes that share its steps.

Uncached tokens count four times because they cost more than this request's wait: they delay the
requests behind it, and what they write pushes prefixes out of the cache that are then computed
again too. Tokens of the last minute count a little, so that requests which share only a few blocks
with everybody (a system prompt) spread over idle replicas instead of crowding one cache.

A load counts four times its seconds for the same reasons: others wait for it, and it takes the room
of another adapter. So an adapter spreads once waiting for its holders costs more.

Both factors were measured (`benchmarks/router_policies.py`): on a trace of chats hits rise from
25 % to 28 %, and the mean time to first token falls once the fleet is busy. Hot prefixes do spread:
as soon as waiting for their holder costs more. Costs within 1 ms of the best count as equal; among
equals the choice is random. `PolicyWeights` has the factors.

While no replica's cache is known all would look alike, and what begins alike would be scattered:
then the choice is that of `prefix-hash`, on which routers agree without telling each other. On the
traces it finds nine tenths of the blocks that the index would.
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest
from octavo_router.policies.prefix_hash import PrefixHash
from octavo_router.policies.weights import DEFAULT_WEIGHTS, PolicyWeights


class ExpectedTTFT:
    name: ClassVar[str] = "expected-ttft"
    reads_session: ClassVar[bool] = False
    weighs_adapters: ClassVar[bool] = True

    def __init__(
        self, rng: random.Random | None = None, weights: PolicyWeights = DEFAULT_WEIGHTS
    ) -> None:
        self._rng = rng or random.Random()
        self._weights = weights
        self._blind = PrefixHash(self._rng)

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        has_loads = any(replica.adapter_s for replica in replicas)
        if not request.has_index and request.hashes and not has_loads:
            return self._blind.choose(request, replicas)
        costs = tuple(self._cost_s(request, replica) for replica in replicas)
        limit = min(costs) + self._weights.tie_ms / 1000
        best = [replica for replica, cost in zip(replicas, costs, strict=True) if cost <= limit]
        return Choice(self._rng.choice(best), costs)

    def _cost_s(self, request: RouteRequest, replica: ReplicaView) -> float:
        """The cost of sending `request` to `replica`, in weighted seconds."""
        weights = self._weights
        num_uncached = max(0, request.num_prompt_tokens - replica.num_cached_tokens)
        num_tokens = (
            replica.num_queued_tokens
            + weights.uncached * num_uncached
            + weights.recent * replica.num_recent_tokens
        )
        prefill_s = num_tokens / replica.prefill_tokens_per_s
        decode_s = weights.running * replica.num_running / replica.decode_tokens_per_s
        return prefill_s + decode_s + weights.adapter * replica.adapter_s
