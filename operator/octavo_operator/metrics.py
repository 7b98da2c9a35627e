"""Prometheus metrics of the operator.

Labels are bounded: verbs, plurals of the kinds it writes, fixed words, and the names of the
ModelDeployments that are there now.
"""

from collections.abc import Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from octavo_operator.queue import Key
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.resources.status import BatchPhase

_PREFIX = "octavo_operator_"
_RECONCILE_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class OperatorMetrics:
    """Counters that the parts write to, in a registry of its own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.api_calls = Counter(
            _PREFIX + "api_calls",
            "Requests to the API server beside the watches, by verb and resource.",
            ["verb", "resource"],
            registry=registry,
        )
        self.watch_events = Counter(
            _PREFIX + "watch_events",
            "Changes that the watches told, by resource.",
            ["resource"],
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            _PREFIX + "reconcile_seconds",
            "Time of one turn of one ModelDeployment or BatchJob.",
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self.reconcile_errors = Counter(
            _PREFIX + "reconcile_errors",
            "Turns that failed, by cause: api (refused), unreachable, defect.",
            ["cause"],
            registry=registry,
        )
        self.queue_length = Gauge(
            _PREFIX + "queue_length", "ModelDeployments and BatchJobs that wait.", registry=registry
        )
        self.is_leader = Gauge(
            _PREFIX + "is_leader", "1 while this process holds the lease.", registry=registry
        )
        self.redis_up = Gauge(_PREFIX + "redis_up", "1 while Redis answers.", registry=registry)
        self.deployments = Gauge(
            _PREFIX + "deployments",
            "ModelDeployments, by the status of their Ready condition.",
            ["ready"],
            registry=registry,
        )
        self.batch_jobs = Gauge(
            _PREFIX + "batch_jobs", "BatchJobs, by phase.", ["phase"], registry=registry
        )
        of_deployment = ["namespace", "deployment"]
        self.desired_replicas = Gauge(
            _PREFIX + "desired_replicas",
            "Replicas that a ModelDeployment is to have.",
            of_deployment,
            registry=registry,
        )
        self.ready_replicas = Gauge(
            _PREFIX + "ready_replicas",
            "Replicas of a ModelDeployment that take traffic.",
            of_deployment,
            registry=registry,
        )
        self.waiting_tokens = Gauge(
            _PREFIX + "waiting_tokens",
            "Prompt tokens that wait at a ModelDeployment's replicas.",
            of_deployment,
            registry=registry,
        )
        self.running_requests = Gauge(
            _PREFIX + "running_requests",
            "Sequences that a ModelDeployment's replicas work on.",
            of_deployment,
            registry=registry,
        )
        self._of_deployment = (
            self.desired_replicas,
            self.ready_replicas,
            self.waiting_tokens,
            self.running_requests,
        )

    def measure_deployment(
        self, key: Key, *, desired: int, ready: int, replicas: Sequence[ReplicaRecord]
    ) -> None:
        """replicas: the records of its live ones."""
        values = (
            desired,
            ready,
            sum(each.waiting_tokens for each in replicas),
            sum(each.running for each in replicas),
        )
        for gauge, value in zip(self._of_deployment, values, strict=True):
            gauge.labels(*key).set(value)

    def forget(self, key: Key) -> None:
        """The ModelDeployment is gone; its series end."""
        for gauge in self._of_deployment:
            gauge.remove_by_labels({"namespace": key.namespace, "deployment": key.name})

    def count_deployments(self, by_ready: Mapping[str, int]) -> None:
        for ready in ("True", "False", "Unknown"):
            self.deployments.labels(ready).set(by_ready.get(ready, 0))

    def count_batch_jobs(self, by_phase: Mapping[str, int]) -> None:
        for phase in BatchPhase:
            self.batch_jobs.labels(phase.value).set(by_phase.get(phase, 0))

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
