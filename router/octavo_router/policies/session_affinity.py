"""A session's requests stay with one replica, whose cache has the turns before, within a bound.

The session is what the client names (`octavo_router.sessions`). A request without one goes by the
beginning of its prompt. The order of replicas and the bound: `bounded_hashing`.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest
from octavo_router.policies.bounded_hashing import choose_bounded
from octavo_router.policies.prefix_hash import PrefixHash


class SessionAffinity:
    name: ClassVar[str] = "session-affinity"
    reads_session: ClassVar[bool] = True
    weighs_adapters: ClassVar[bool] = False

    def __init__(self, rng: random.Random | None = None) -> None:
        self._without_session = PrefixHash(rng)

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        if request.session is None:
            return self._without_session.choose(request, replicas)
        key = hashlib.blake2b(request.session.encode(), digest_size=16).digest()
        return choose_bounded(key, request, replicas)
