"""One turn of one BatchJob: gather, decide, act."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from octavo_operator.act import Actor
from octavo_operator.apply import prepared
from octavo_operator.batch_jobs.decide import decide
from octavo_operator.batch_jobs.observed import DesiredBatchJob, ObservedBatchJob
from octavo_operator.batch_jobs.open_batches import OpenBatches
from octavo_operator.batch_jobs.watches import BatchJobWatches
from octavo_operator.cluster import ApiError, Cluster, path_of
from octavo_operator.desired import Manifest
from octavo_operator.events import Events
from octavo_operator.gather import TRUSTED_S, WrittenObjects, is_owned
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.objects import KubernetesObject, label, name, text
from octavo_operator.queue import Key, ReconcileQueue
from octavo_operator.settings import OperatorSettings
from octavo_operator.turns import RefusedError, Turns, sooner
from octavo_operator.watches import Watches, served_names


@dataclass(slots=True)
class _Memory:
    """What is remembered of one BatchJob between its turns; all of it may be lost."""

    uid: str
    written: WrittenObjects = field(default_factory=WrittenObjects)
    apply_error: str = ""


class BatchJobReconciler(Turns):
    """Takes the turns of BatchJobs. deployments: the watches of ModelDeployments."""

    def __init__(
        self,
        *,
        settings: OperatorSettings,
        queue: ReconcileQueue,
        watches: BatchJobWatches,
        deployments: Watches,
        batches: OpenBatches,
        cluster: Cluster,
        actor: Actor,
        events: Events,
        metrics: OperatorMetrics,
        check: Callable[[], None],
    ) -> None:
        super().__init__(queue, metrics, check)
        self._settings = settings
        self._watches = watches
        self._deployments = deployments
        self._batches = batches
        self._cluster = cluster
        self._actor = actor
        self._events = events
        self._memories: dict[Key, _Memory] = {}

    async def resync(self) -> None:
        """Every BatchJob gets a turn now and then. Runs until cancelled."""
        while True:
            await asyncio.sleep(self._settings.resync_s)
            for key in self._watches.keys():  # noqa: SIM118  # no mapping
                self._queue.add(key)

    async def _reconcile(self, key: Key) -> float | None:
        resource = self._watches.resource(key)
        if resource is None:
            self._forget(key)
            return None
        memory = self._memory(key, resource)
        observed = self._gather(key, resource, memory)
        desired = decide(observed, self._settings)
        await self._act(observed, desired, memory)
        if memory.apply_error != observed.apply_error:
            self._queue.add(key)  # the status is to tell
        if memory.apply_error:
            raise RefusedError(memory.apply_error)
        return sooner(desired.look_again_s, TRUSTED_S if memory.written.is_ahead else None)

    def _gather(self, key: Key, resource: KubernetesObject, memory: _Memory) -> ObservedBatchJob:
        resource = memory.written.newest(resource)
        watched = [memory.written.newest(each) for each in self._watches.jobs(key)]
        jobs = [*watched, *memory.written.unwatched(watched, ("Job",))]
        job = next((each for each in jobs if is_owned(each, resource)), None)
        return ObservedBatchJob(
            now=datetime.now(UTC).replace(microsecond=0),
            resource=resource,
            job=job,
            pods=[pod for pod in self._watches.pods(key) if _is_of(pod, job)],
            batch=self._batches.batch(memory.uid),
            target_model=self._target_model(key, resource),
            apply_error=memory.apply_error,
        )

    def _target_model(self, key: Key, resource: KubernetesObject) -> str | None:
        target = text(resource, "spec", "target", "name")
        deployment = self._deployments.deployment(Key(key.namespace, target))
        return None if deployment is None else served_names(deployment)[0]

    async def _act(
        self, observed: ObservedBatchJob, desired: DesiredBatchJob, memory: _Memory
    ) -> None:
        memory.apply_error = ""
        if desired.job is not None:
            memory.apply_error = await self._make(desired.job, observed.resource, memory)
        if desired.stops_job and observed.job is not None:
            await self._cluster.merge(path_of(observed.job), {"spec": {"parallelism": 0}})
        if (answer := await self._actor.tell(observed.resource, desired.status)) is not None:
            memory.written.note(answer)
        for event in desired.events:
            await self._events.post(observed.resource, event)
        if desired.is_over:
            await self._cluster.delete(path_of(observed.resource), memory.uid)

    async def _make(self, manifest: Manifest, resource: KubernetesObject, memory: _Memory) -> str:
        """What the API server has against it; empty where it is there."""
        wanted = prepared(manifest, resource)
        try:
            live = await self._cluster.find(path_of(wanted))
            if live is not None and not is_owned(live, resource):
                return (
                    f"Job {name(live)}: one of that name exists and does not belong to this "
                    "BatchJob; delete it, or give the BatchJob another name"
                )
            memory.written.note(live or await self._cluster.apply(wanted))
        except ApiError as error:
            return f"Job {name(wanted)}: {error.message}"
        return ""

    def _memory(self, key: Key, resource: KubernetesObject) -> _Memory:
        uid = resource["metadata"]["uid"]
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            self._forget(key)
            memory = self._memories[key] = _Memory(uid)
        return memory

    def _forget(self, key: Key) -> None:
        """Its Job is the garbage collector's, its batch is cancelled by the next poll."""
        if (memory := self._memories.pop(key, None)) is not None:
            self._batches.forget(memory.uid)


def _is_of(pod: KubernetesObject, job: KubernetesObject | None) -> bool:
    """A Job's controller labels its pods so, in every version."""
    return job is not None and label(pod, "controller-uid") == text(job, "metadata", "uid")
