"""One turn of one ModelDeployment: gather, decide, act."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from octavo_operator.act import Actor
from octavo_operator.adapter_status import status_without_target
from octavo_operator.adapters_client import AdaptersClient
from octavo_operator.desired import Desired
from octavo_operator.fleet import Fleet
from octavo_operator.gather import TRUSTED_S, Memory, gather
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.model_config import ModelConfigs
from octavo_operator.observed import KubernetesObject, Observed
from octavo_operator.queue import Key, ReconcileQueue
from octavo_operator.settings import OperatorSettings
from octavo_operator.turns import RefusedError, Turns, sooner
from octavo_operator.watches import Watches

_FORMER_S = 1.0  # the garbage collector takes about that long

Decide = Callable[[Observed, OperatorSettings], Desired]


class Reconciler(Turns):
    """Takes the turns of ModelDeployments."""

    def __init__(
        self,
        *,
        settings: OperatorSettings,
        decide: Decide,
        queue: ReconcileQueue,
        watches: Watches,
        fleet: Fleet,
        adapters: AdaptersClient,
        configs: ModelConfigs,
        actor: Actor,
        served: frozenset[str],
        metrics: OperatorMetrics,
        check: Callable[[], None],
    ) -> None:
        super().__init__(queue, metrics, check)
        self._settings = settings
        self._decide = decide
        self._watches = watches
        self._fleet = fleet
        self._adapters = adapters
        self._configs = configs
        self._actor = actor
        self._served = served
        self._memories: dict[Key, Memory] = {}

    async def resync(self) -> None:
        """Every deployment gets a turn now and then, spread over time. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.resync_s)
            keys = self._watches.deployment_keys()
            for index, key in enumerate(keys):
                self._queue.add(key, index / len(keys) * self._settings.resync_s / 2)

    async def _reconcile(self, key: Key) -> float | None:
        """Returns when to look again."""
        deployment = self._watches.deployment(key)
        if deployment is None:
            await self._forget(key)
            return None
        memory = self._memory(key, deployment)
        observed = self._gather(key, deployment, memory)
        desired = self._decide(observed, self._settings)
        outcome = await self._actor.act(observed, desired, memory)
        had_refused, memory.apply_errors = memory.apply_errors, outcome.refused
        if bool(outcome.refused) != bool(had_refused):
            self._queue.add(key)  # the status is to tell
        if outcome.refused:
            raise RefusedError("; ".join(outcome.refused))
        return sooner(
            desired.look_again_s,
            _FORMER_S if outcome.waits_for_former else None,
            TRUSTED_S if memory.written.is_ahead else None,
        )

    def _gather(self, key: Key, deployment: KubernetesObject, memory: Memory) -> Observed:
        return gather(
            deployment,
            watches=self._watches,
            fleet=self._fleet,
            memory=memory,
            served=self._served,
            facts=self._configs.facts(key, deployment),
            adapter_errors=self._adapters.errors(key),
            node_selector=self._settings.pod_defaults.node_selector,
        )

    def _memory(self, key: Key, deployment: KubernetesObject) -> Memory:
        uid = deployment["metadata"]["uid"]
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            memory = self._memories[key] = Memory(uid)
        return memory

    async def _forget(self, key: Key) -> None:
        """There is no such ModelDeployment; children it had are the garbage collector's."""
        self._memories.pop(key, None)
        self._adapters.forget(key)
        self._metrics.forget(key)
        self._configs.forget(key)
        await self._fleet.unregister(key)
        for adapter in self._watches.adapters(key):
            await self._actor.tell(adapter, status_without_target(adapter, datetime.now(UTC)))
