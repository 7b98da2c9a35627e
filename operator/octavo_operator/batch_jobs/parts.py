"""The parts of the operator that are for BatchJobs, put together."""

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from octavo_operator.act import Actor
from octavo_operator.batch_jobs.open_batches import OpenBatches
from octavo_operator.batch_jobs.reconciler import BatchJobReconciler
from octavo_operator.batch_jobs.watches import BatchJobWatches
from octavo_operator.cluster import Cluster, path_of
from octavo_operator.events import Events
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.objects import text
from octavo_operator.queue import Key, ReconcileQueue
from octavo_operator.settings import OperatorSettings
from octavo_operator.watches import Watches
from octavo_protocol.resources.metadata import API_VERSION
from octavo_protocol.resources.status import BatchPhase

KIND = f"{API_VERSION}/BatchJob"
_NUM_WORKERS = 2


@dataclass(frozen=True, slots=True)
class BatchJobParts:
    queue: ReconcileQueue
    reconciler: BatchJobReconciler
    batches: OpenBatches
    watches: BatchJobWatches

    def phases(self) -> Counter[str]:
        """How many BatchJobs are in each phase."""
        found = map(self.watches.resource, self.watches.keys())
        return Counter(text(each, "status", "phase") or BatchPhase.PENDING for each in found)

    def workers(self) -> list[Coroutine[Any, Any, None]]:
        """They end when the queue is closed."""
        return [self.reconciler.work() for _ in range(_NUM_WORKERS)]

    def others(self) -> list[Coroutine[Any, Any, None]]:
        """They run until cancelled."""
        return [self.reconciler.resync(), self.batches.run()]


def batch_job_parts(
    *,
    settings: OperatorSettings,
    cluster: Cluster,
    client: "redis.asyncio.Redis",
    deployments: Watches,
    actor: Actor,
    events: Events,
    metrics: OperatorMetrics,
    check: Callable[[], None],
) -> BatchJobParts:
    """For an API server that serves the kind. deployments: the watches of ModelDeployments."""
    queue = ReconcileQueue()
    watches = BatchJobWatches(deployments, queue.add)

    async def exists(key: Key, uid: str) -> bool:
        """The indices know, or the API server: while they fill, they know of too few."""
        found = watches.resource(key)
        if found is None or found["metadata"]["uid"] != uid:
            metadata = {"namespace": key.namespace, "name": key.name}
            manifest = {"apiVersion": API_VERSION, "kind": "BatchJob", "metadata": metadata}
            found = await cluster.find(path_of(manifest))
        return found is not None and bool(found["metadata"]["uid"] == uid)

    batches = OpenBatches(
        client,
        changed=queue.add,
        is_ours=lambda key: not settings.namespaces or key.namespace in settings.namespaces,
        exists=exists,
    )
    reconciler = BatchJobReconciler(
        settings=settings,
        queue=queue,
        watches=watches,
        deployments=deployments,
        batches=batches,
        cluster=cluster,
        actor=actor,
        events=events,
        metrics=metrics,
        check=check,
    )
    return BatchJobParts(queue, reconciler, batches, watches)
