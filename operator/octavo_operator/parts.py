"""The parts of a leading operator, put together, and what they tell each other."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import redis.asyncio

from octavo_operator.act import Actor
from octavo_operator.adapters_client import AdaptersClient
from octavo_operator.batch_jobs.parts import KIND, BatchJobParts, batch_job_parts
from octavo_operator.cluster import Cluster, path_of
from octavo_operator.decide import decide
from octavo_operator.events import Events
from octavo_operator.fleet import Fleet, Interest
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.model_config import ModelConfigs
from octavo_operator.names import COMPONENT, DOWNLOAD_COMPONENT, REPLICA_COMPONENT
from octavo_operator.observed import KubernetesObject
from octavo_operator.queue import Key, ReconcileQueue
from octavo_operator.reconciler import Reconciler
from octavo_operator.settings import OperatorSettings
from octavo_operator.watches import Watches
from octavo_protocol.resources.metadata import API_VERSION

_REDIS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Parts:
    queue: ReconcileQueue
    watches: Watches
    fleet: Fleet
    reconciler: Reconciler
    metrics: OperatorMetrics
    batch_jobs: BatchJobParts | None = None  # None: the API server does not serve them

    @property
    def queues(self) -> list[ReconcileQueue]:
        return [self.queue] if self.batch_jobs is None else [self.queue, self.batch_jobs.queue]

    def measure(self) -> None:
        """Brings the gauges up to date."""
        self.metrics.queue_length.set(sum(map(len, self.queues)))
        self.metrics.redis_up.set(self.fleet.is_known)
        deployments = {key: self.watches.deployment(key) for key in self.watches.deployment_keys()}
        if self.batch_jobs is not None:
            self.metrics.count_batch_jobs(self.batch_jobs.phases())
        known = {key: each for key, each in deployments.items() if each is not None}
        self.metrics.count_deployments(Counter(map(_ready, known.values())))
        for key, each in known.items():
            status = each.get("status") or {}
            self.metrics.measure_deployment(
                key,
                desired=status.get("desiredReplicas", 0),
                ready=status.get("readyReplicas", 0),
                replicas=self.fleet.replicas(key),
            )


@asynccontextmanager
async def assemble(
    settings: OperatorSettings,
    cluster: Cluster,
    metrics: OperatorMetrics,
    served: frozenset[str],
    check: Callable[[], None],
) -> AsyncIterator[Parts]:
    """served: `group/version/Kind` of what the API server has. check: raises when this process may
    no longer act.
    """
    queue = ReconcileQueue()
    watches = Watches(
        changed=queue.add,
        metrics=metrics,
        served=served,
        with_nodes=await cluster.may("list", "nodes") and await cluster.may("watch", "nodes"),
    )
    client = redis.asyncio.Redis.from_url(
        settings.redis_url,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
    )
    configs = ModelConfigs(queue.add)
    fleet = Fleet(
        client,
        interests=lambda: _interests(watches),
        changed=queue.add,
        is_ours=lambda key: not settings.namespaces or key.namespace in settings.namespaces,
        exists=lambda key: _exists(key, watches, cluster),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.aclose)
        stack.push_async_callback(configs.close)
        adapters = await stack.enter_async_context(
            AdaptersClient(queue.add, api_key=settings.replica_api_key)
        )
        events = Events(cluster, settings.identity)
        actor = Actor(cluster=cluster, fleet=fleet, adapters=adapters, events=events)
        reconciler = Reconciler(
            settings=settings,
            decide=decide,
            queue=queue,
            watches=watches,
            fleet=fleet,
            adapters=adapters,
            configs=configs,
            actor=actor,
            served=served,
            metrics=metrics,
            check=check,
        )
        batch_jobs = None
        if KIND in served:
            batch_jobs = batch_job_parts(
                settings=settings,
                cluster=cluster,
                client=client,
                deployments=watches,
                actor=actor,
                events=events,
                metrics=metrics,
                check=check,
            )
        yield Parts(queue, watches, fleet, reconciler, metrics, batch_jobs)


def _interests(watches: Watches) -> Iterable[Interest]:
    """Deployments that have pods of replicas, or of a download that goes on."""
    for key in watches.deployment_keys():
        pods = [each for each in watches.pods(key) if _is_of(each, REPLICA_COMPONENT)]
        is_downloading = any(map(_downloads, watches.pods(key)))
        deployment = watches.deployment(key)
        if (pods or is_downloading) and deployment is not None:
            spec = deployment.get("spec") or {}
            scales = spec.get("autoscaling") is not None
            is_settled = all(map(_is_ready, pods))
            is_urgent = scales or not is_settled
            yield Interest(key, is_urgent, sees_load=scales, is_downloading=is_downloading)


async def _exists(key: Key, watches: Watches, cluster: Cluster) -> bool:
    """The indices know, or the API server: while they fill, they know of too few."""
    if watches.deployment(key) is not None:
        return True
    metadata = {"namespace": key.namespace, "name": key.name}
    manifest = {"apiVersion": API_VERSION, "kind": "ModelDeployment", "metadata": metadata}
    return await cluster.find(path_of(manifest)) is not None


def _is_of(pod: KubernetesObject, component: str) -> bool:
    return (pod["metadata"].get("labels") or {}).get(COMPONENT) == component


def _downloads(pod: KubernetesObject) -> bool:
    is_running = (pod.get("status") or {}).get("phase") == "Running"
    return is_running and _is_of(pod, DOWNLOAD_COMPONENT)


def _is_ready(pod: KubernetesObject) -> bool:
    return _condition(pod, "Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _ready(deployment: KubernetesObject) -> str:
    return _condition(deployment, "Ready")


def _condition(each: KubernetesObject, kind: str) -> str:
    """`True`, `False` or `Unknown`."""
    for condition in (each.get("status") or {}).get("conditions") or ():
        if condition["type"] == kind:
            return str(condition["status"])
    return "Unknown"
