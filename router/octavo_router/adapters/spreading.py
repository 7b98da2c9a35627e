"""Keeps as many copies of every adapter as its demand asks for.

A replica that was restarted has none of them; what demand wants is loaded on it before requests
miss it. Adapters that are wanted less are unloaded by nobody: the replica drops the one that was
used longest ago where it needs the room. Adapters that belong on every replica are the operator's.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from octavo_protocol.records import AdapterSource, ReplicaRecord
from octavo_router.adapters.demand import wanted_copies
from octavo_router.adapters.holdings import AdapterHoldings
from octavo_router.adapters.placement import Host, new_hosts
from octavo_router.deployment import Deployment

PERIOD_S = 1.0
_DEFAULT_MAX_NUM_SEQS = 8
_DEFAULT_TOKENS_PER_S = 1000.0


class Loader(Protocol):
    """What it asks of an `AdapterLoader`."""

    def is_loading(self, incarnation: str, name: str) -> bool: ...
    def start(
        self, adapters: AdapterHoldings, record: ReplicaRecord, source: AdapterSource
    ) -> object: ...


class AdapterSpreading:
    """deployments: those that there are now."""

    def __init__(self, deployments: Callable[[], Iterable[Deployment]], loader: Loader) -> None:
        self._deployments = deployments
        self._loader = loader
        self._copies: WeakKeyDictionary[Deployment, Mapping[str, int]] = WeakKeyDictionary()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            for deployment in self._deployments():
                self.spread(deployment)

    def spread(self, deployment: Deployment) -> None:
        """Begins the loads that are missing: one at a time on each replica, for the adapters that
        are wanted most, so that requests which miss another one find a free place.
        """
        adapters = deployment.replicas.adapters
        demands = {
            name: demand
            for name, demand in deployment.demand.measure().items()
            if (source := adapters.sources.get(name)) is not None and source.on_demand
        }
        former, copies = self._copies.pop(deployment, {}), dict[str, int]()
        if not demands:
            return
        idle = {each.incarnation for each in deployment.replicas.records}
        for name in sorted(demands, key=lambda each: (-demands[each], each)):
            records = [r for r in deployment.replicas.usable(name) if r.max_adapters]
            num_seqs = _mean_num_seqs(records)
            wanted = wanted_copies(demands[name], num_seqs, former.get(name, 0))
            copies[name] = min(wanted, len(records))
            for record in self._new_homes(deployment, name, copies[name], demands, records):
                if record.incarnation in idle:
                    idle.discard(record.incarnation)
                    self._loader.start(adapters, record, adapters.sources[name])
        self._copies[deployment] = copies

    def _new_homes(
        self,
        deployment: Deployment,
        name: str,
        copies: int,
        demands: Mapping[str, float],
        records: Sequence[ReplicaRecord],
    ) -> Iterable[ReplicaRecord]:
        by_id = {record.replica_id: record for record in records}
        hosts = [self._host(deployment, record, name) for record in records]
        return (by_id[each.replica_id] for each in new_hosts(name, copies, hosts, demands))

    def _host(self, deployment: Deployment, record: ReplicaRecord, name: str) -> Host:
        held = set(record.loaded_adapters) - {name}
        is_there = deployment.replicas.adapters.has(record, name)
        if is_there or self._loader.is_loading(record.incarnation, name):
            held.add(name)
        num_queued = deployment.loads.num_queued_tokens(record.incarnation)
        rate = record.prefill_tokens_per_s or _DEFAULT_TOKENS_PER_S
        return Host(record.replica_id, frozenset(held), record.max_adapters, num_queued / rate)


def _mean_num_seqs(records: Sequence[ReplicaRecord]) -> float:
    known = [record.max_num_seqs for record in records if record.max_num_seqs]
    return sum(known) / len(known) if known else _DEFAULT_MAX_NUM_SEQS
