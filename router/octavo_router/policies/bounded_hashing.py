"""Consistent hashing with bounded loads: a key's requests stay together unless that overloads.

Each key orders the replicas by a hash of both: rendezvous hashing. When a replica comes or goes,
only the keys that it gains or loses move; routers that share no state agree. A request goes to the
first replica in its key's order that is below the bound

    requests there + 1 <= ceil(1.25 x (requests everywhere + 1) / replicas)

so that a hot key overflows to its next replicas, always the same ones, instead of queueing. Some
replica is always below the bound: the least loaded one is at most at the mean.

Sources: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), for the
order; Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads" (2016), for the
bound. Theirs is a ring, on which all of a full replica's overflow falls on one neighbour; in
rendezvous order it spreads.
"""

import hashlib
import math
from collections.abc import Sequence

from octavo_router.policies.base import Choice, ReplicaView

LOAD_FACTOR = 1.25


def choose_bounded(key: bytes, replicas: Sequence[ReplicaView]) -> Choice:
    """The first replica in the order of `key` that is below the bound.

    Costs: its place in that order, from 0 to 1, and 1 more at the bound.
    """
    limit = max_requests(replicas)
    costs = tuple(
        _distance(key, replica.replica_id) + (replica.num_running >= limit) for replica in replicas
    )
    return Choice(replicas[costs.index(min(costs))], costs)


def max_requests(replicas: Sequence[ReplicaView]) -> int:
    """How many requests one replica may have, a new one included."""
    total = sum(replica.num_running for replica in replicas) + 1
    return math.ceil(LOAD_FACTOR * total / len(replicas))


def _distance(key: bytes, replica_id: str) -> float:
    digest = hashlib.blake2b(replica_id.encode(), key=key, digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
