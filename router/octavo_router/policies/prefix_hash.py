"""By a hash of the prompt's beginning, within a bound on load: needs no knowledge of caches.

Requests that begin alike go to one replica, which then has their blocks, without anybody telling;
so it serves where there is no prefix index, and routers agree that cannot ask each other. The key
is the hash of the prompt's first 1, 2, 4, 8 ... blocks: the most that it has, within 1,024 tokens.
So a short chat that grows changes its replica a few times at most, and long prompts under one
system prompt still spread. The bound: `bounded_hashing`. Prompts without a full block, or without
a tokenizer, go by load.
"""

import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest
from octavo_router.policies.bounded_hashing import choose_bounded
from octavo_router.policies.least_load import LeastLoad

_KEY_TOKENS = 1024


class PrefixHash:
    name: ClassVar[str] = "prefix-hash"
    reads_session: ClassVar[bool] = False
    weighs_adapters: ClassVar[bool] = False

    def __init__(self, rng: random.Random | None = None) -> None:
        self._unkeyed = LeastLoad(rng)

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        key = prefix_key(request)
        if key is None:
            return self._unkeyed.choose(request, replicas)
        return choose_bounded(key, request, replicas)


def prefix_key(request: RouteRequest) -> bytes | None:
    """Equal for prompts that begin alike; None where there is no full block."""
    if not request.hashes:
        return None
    num_blocks = min(len(request.hashes), max(1, _KEY_TOKENS // request.block_size))
    return request.hashes[(1 << (num_blocks.bit_length() - 1)) - 1]
