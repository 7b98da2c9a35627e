"""Each replica in turn, by the order of their ids."""

from collections.abc import Sequence
from typing import ClassVar

from octavo_router.policies.base import Choice, ReplicaView, RouteRequest


class RoundRobin:
    """Remembers the last id instead of a counter, so that replicas may come and go."""

    name: ClassVar[str] = "round-robin"
    reads_session: ClassVar[bool] = False
    weighs_adapters: ClassVar[bool] = False

    def __init__(self) -> None:
        self._last = ""

    def choose(self, request: RouteRequest, replicas: Sequence[ReplicaView]) -> Choice:
        ordered = sorted(replicas, key=lambda replica: replica.replica_id)
        later = (replica for replica in ordered if replica.replica_id > self._last)
        replica = next(later, ordered[0])
        self._last = replica.replica_id
        return Choice(replica, tuple(0.0 for _ in replicas))
