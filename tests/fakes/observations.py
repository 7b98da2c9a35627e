"""What an operator may observe, built for tests: a deployment, its pods and records, and what is
there after a decision was carried out.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from octavo_operator import names
from octavo_operator.decide import decide
from octavo_operator.desired import Desired, Manifest
from octavo_operator.observed import KubernetesObject, Observed
from octavo_operator.settings import OperatorSettings
from octavo_protocol.records import ReplicaRecord

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NAME = "chat"
SETTINGS = OperatorSettings(
    runtime_image="octavo-runtime:test",
    redis_url="redis://:secret@redis:6379/0",
    router_url="http://octavo-router.octavo-system.svc",
)


def deployment(source: str = "smollm2", *, generation: int = 1, **spec: Any) -> dict[str, Any]:
    """A ModelDeployment as the API server gives it."""
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {
            "name": NAME,
            "namespace": "team",
            "uid": "uid-1",
            "generation": generation,
            "creationTimestamp": "2026-03-01T11:00:00Z",
            "resourceVersion": "7",
        },
        "spec": {"model": {"source": source}, "resources": {"gpu": {"count": 0}}, **spec},
    }


def observe(resource: KubernetesObject, **fields: Any) -> Observed:
    return Observed(deployment=resource, **{"now": NOW, **fields})


def later(observed: Observed, seconds: float, **fields: Any) -> Observed:
    """The same observation after some time, with what else has changed."""
    return replace(observed, now=observed.now + timedelta(seconds=seconds), **fields)


def applied(observed: Observed, desired: Desired) -> Observed:
    """What is observed when `desired` was carried out and nothing else has happened."""
    children = {(c["kind"], c["metadata"]["name"]): c for c in observed.children}
    for child in desired.children or ():
        key = child["kind"], child["metadata"]["name"]
        status = children.get(key, {}).get("status", {})
        children[key] = {**child, "status": status}
    for gone in desired.removed:
        children.pop((gone.kind, gone.name), None)
    costs = desired.deletion_costs
    return replace(
        observed,
        deployment={**observed.deployment, "status": desired.status},
        children=tuple(children.values()),
        pods=[_with_cost(each, costs) for each in observed.pods],
        recommendations=desired.recommendations,
    )


def _with_cost(pod: KubernetesObject, costs: Mapping[str, int]) -> KubernetesObject:
    name = pod["metadata"]["name"]
    if name not in costs:
        return pod
    noted = {names.DELETION_COST: str(costs[name])}
    return {**pod, "metadata": {**pod["metadata"], "annotations": noted}}


def settled(resource: KubernetesObject, num_ready: int, **fields: Any) -> Observed:
    """A deployment of which everything was made, with so many ready replicas."""
    first = applied(observe(resource, **fields), decide(observe(resource, **fields), SETTINGS))
    template = template_of(first)
    ready = replace(
        first,
        pods=[ready_pod(f"{NAME}-{index}", template) for index in range(num_ready)],
        replicas=[record(f"{NAME}-{index}") for index in range(num_ready)],
    )
    return applied(ready, decide(ready, SETTINGS))


def template_of(observed: Observed) -> str:
    """Hash of the pod template that the workload has."""
    workload = observed.child("Deployment", NAME)
    assert workload is not None
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels[names.TEMPLATE_HASH]


def pod(name: str, template: str = "", *, status: Manifest, node: str = "node1") -> Manifest:
    """A replica's pod. node: empty for one without."""
    labels = names.labels(NAME, names.REPLICA_COMPONENT) | {names.TEMPLATE_HASH: template}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-03-01T11:30:00Z"},
        "spec": {"nodeName": node} if node else {},
        "status": status,
    }


def ready_pod(name: str, template: str = "") -> Manifest:
    return pod(name, template, status=running(is_ready=True))


def running(*, is_ready: bool, started: bool = True) -> Manifest:
    container = {
        "name": "engine",
        "image": "octavo-runtime:test",
        "ready": is_ready,
        "started": started,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-03-01T11:31:00Z"}},
    }
    ready = {"type": "Ready", "status": "True" if is_ready else "False"}
    return {"phase": "Running", "conditions": [ready], "containerStatuses": [container]}


def waiting(reason: str, message: str = "", **fields: Any) -> Manifest:
    """Status of a pod whose container waits."""
    container = {
        "name": "engine",
        "image": "octavo-runtime:test",
        "ready": False,
        "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}},
        **fields,
    }
    return {
        "phase": "Pending",
        "conditions": [{"type": "Ready", "status": "False"}],
        "containerStatuses": [container],
    }


def unschedulable(message: str) -> Manifest:
    scheduled = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    return {"phase": "Pending", "conditions": [scheduled]}


def record(replica_id: str, **fields: Any) -> ReplicaRecord:
    made = ReplicaRecord(
        replica_id=replica_id,
        incarnation=f"i-{replica_id}",
        url=f"http://{replica_id}:8000",
        model=NAME,
        served_names=[NAME],
        cache_model="m@1",
        block_size=16,
        num_blocks=1000,
        max_model_len=4096,
        prefill_tokens_per_s=1000.0,
        decode_tokens_per_s=100.0,
        max_num_seqs=64,
    )
    return msgspec.structs.replace(made, **fields)


def condition(desired: Desired, type_: str) -> tuple[str, str, str]:
    """(status, reason, message) of a condition; ("", "", "") where it is absent."""
    for each in desired.status["conditions"]:
        if each["type"] == type_:
            return each["status"], each["reason"], each["message"]
    return "", "", ""
