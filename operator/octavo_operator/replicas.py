"""Where each replica stands: its pod's state, the runtime's record and the reason in one sentence.

    Pending ─► Loading ─► Ready ─► Draining        Failed: a container that cannot start or ended

A replica is ready when its pod is and its record in Redis says so too: traffic comes by the record.
Nothing here counts seconds, so that an unchanged pod gives an unchanged sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from octavo_operator.names import COMPONENT, REPLICA_COMPONENT, TEMPLATE_HASH
from octavo_operator.objects import (
    KubernetesObject,
    condition,
    label,
    members,
    name,
    number,
    text,
    time,
    value,
)
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_protocol.records import ReplicaRecord

_MAX_MESSAGE = 400
_PULL_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
)
_START_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
)


class Stage(StrEnum):
    PENDING = "Pending"
    LOADING = "Loading"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class Failure(StrEnum):
    """Why a pod cannot become ready by itself; the reasons of condition `Degraded`, worst first."""

    IMAGE_PULL_FAILED = Reason.IMAGE_PULL_FAILED.value
    CANNOT_START = Reason.CANNOT_START.value
    OUT_OF_MEMORY = Reason.OUT_OF_MEMORY.value
    CONTAINER_FAILED = Reason.CONTAINER_FAILED.value
    UNSCHEDULABLE = Reason.UNSCHEDULABLE.value
    POD_LOST = Reason.POD_LOST.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """template: hash of the pod template that its pod was made from. ready_since: when its pod last
    became ready, or ceased to be. message: what it waits for or failed with. failure: None where
    nothing fails. record: None where Redis has none.
    """

    name: str
    stage: Stage
    template: str
    created: datetime | None = None
    ready_since: datetime | None = None
    message: str = ""
    failure: Failure | None = None
    record: ReplicaRecord | None = None


def replicas(observed: Observed) -> list[Replica]:
    """Every replica that has not ended, by name."""
    records = {record.replica_id: record for record in observed.replicas}
    pods = [pod for pod in observed.pods if label(pod, COMPONENT) == REPLICA_COMPONENT]
    newest = max((text(pod, "metadata", "creationTimestamp") for pod in pods), default="")
    found = [
        _replica(pod, records.get(name(pod)), observed.is_fleet_known)
        for pod in pods
        if not _is_replaced(pod, newest)
    ]
    return sorted(found, key=lambda each: each.name)


def has_ended(pod: KubernetesObject) -> bool:
    """None of its containers will ever run again."""
    return text(pod, "status", "phase") in ("Succeeded", "Failed")


def _is_replaced(pod: KubernetesObject, newest: str) -> bool:
    """It ended, as when it was evicted; it stays in the API long after its successor was made."""
    return has_ended(pod) and text(pod, "metadata", "creationTimestamp") < newest


def _replica(pod: KubernetesObject, record: ReplicaRecord | None, is_fleet_known: bool) -> Replica:
    stage, message, failure = _state(pod, record, is_fleet_known)
    if value(pod, "metadata", "deletionTimestamp") is not None:
        stage, message, failure = Stage.DRAINING, "finishes its requests", None
    return Replica(
        name=name(pod),
        stage=stage,
        template=label(pod, TEMPLATE_HASH),
        created=time(pod, "metadata", "creationTimestamp"),
        ready_since=time(condition(pod, "Ready"), "lastTransitionTime"),
        message=shortened(message),
        failure=failure,
        record=record,
    )


def _state(
    pod: KubernetesObject, record: ReplicaRecord | None, is_fleet_known: bool
) -> tuple[Stage, str, Failure | None]:
    if (failed := pod_failure(pod)) is not None:
        is_waiting = failed[0] is Failure.UNSCHEDULABLE
        return Stage.PENDING if is_waiting else Stage.FAILED, failed[1], failed[0]
    if text(condition(pod, "Ready"), "status") == "True":
        return *_ready_state(record, is_fleet_known), None
    if not text(pod, "spec", "nodeName"):
        return Stage.PENDING, "waits for a node", None
    return *_starting_state(pod), None


def _ready_state(record: ReplicaRecord | None, is_fleet_known: bool) -> tuple[Stage, str]:
    if not is_fleet_known:
        return Stage.READY, ""
    if record is None:
        return Stage.LOADING, "answers, but is not registered in Redis"
    if record.draining:
        return Stage.DRAINING, "finishes its requests"
    if not record.ready:
        return Stage.LOADING, "is registered in Redis as not ready"
    return Stage.READY, ""


def _starting_state(pod: KubernetesObject) -> tuple[Stage, str]:
    statuses = members(pod, "status", "containerStatuses")
    running = [each for each in statuses if isinstance(value(each, "state", "running"), Mapping)]
    node = text(pod, "spec", "nodeName")
    if not running:
        return Stage.PENDING, f"its container is being made on node {node}"
    if running[0].get("started") is True:
        return (
            Stage.LOADING,
            "was ready before; now /ready does not answer 200, or its node does not report",
        )
    since = text(running[0], "state", "running", "startedAt") or "its start"
    return Stage.LOADING, f"loads the model since {since}"


def pod_failure(pod: KubernetesObject) -> tuple[Failure, str] | None:
    """Why the pod, of whatever kind, cannot go on by itself."""
    phase, reason = text(pod, "status", "phase"), text(pod, "status", "reason")
    statuses = [
        *members(pod, "status", "initContainerStatuses"),
        *members(pod, "status", "containerStatuses"),
    ]
    for status in statuses:
        if (failed := _container_failure(status)) is not None:
            return failed
    if phase in ("Failed", "Succeeded", "Unknown"):
        message = text(pod, "status", "message") or "no message"
        return Failure.POD_LOST, f"the pod is {phase} ({reason or 'no reason'}): {message}"
    scheduled = condition(pod, "PodScheduled")
    if text(scheduled, "status") == "False":
        return Failure.UNSCHEDULABLE, f"no node takes it: {text(scheduled, 'message')}"
    return None


def _container_failure(status: KubernetesObject) -> tuple[Failure, str] | None:
    container, waiting = text(status, "name"), value(status, "state", "waiting")
    reason = text(waiting, "reason")
    if reason in _PULL_REASONS:
        # The kubelet alternates between two reasons and messages; this one stays.
        image = text(status, "image")
        return Failure.IMAGE_PULL_FAILED, f"container {container}: cannot pull image {image!r}"
    if reason in _START_REASONS:
        message = text(waiting, "message") or reason
        return Failure.CANNOT_START, f"container {container} cannot start: {message}"
    if status.get("ready") is True:
        return None
    return _ended(status, container)


def _ended(status: KubernetesObject, container: str) -> tuple[Failure, str] | None:
    """What a container that is not ready ended with the last time, if that was an error."""
    state = value(status, "state")
    last = value(state, "terminated") or value(status, "lastState", "terminated")
    reason, code = text(last, "reason"), number(last, "exitCode")
    if not isinstance(last, Mapping) or (code == 0 and reason in ("Completed", "")):
        return None
    running = isinstance(value(state, "running"), Mapping)
    times = number(status, "restartCount") + (0 if running else 1)
    said = text(last, "message").strip().rstrip(".")
    sentence = (
        f"container {container} ended {_times(times)}, last with exit code {code}"
        f" ({reason or 'no reason'})" + (f": {_last_lines(said)}" if said else "")
    )
    return (
        Failure.OUT_OF_MEMORY if reason == "OOMKilled" else Failure.CONTAINER_FAILED,
        sentence,
    )


def _times(count: int) -> str:
    return "once" if count <= 1 else f"{count} times"


def _last_lines(message: str) -> str:
    """The end of a log, in one line: the error is what a process says last."""
    line = " ".join(message.split())
    return line if len(line) <= _MAX_MESSAGE - 100 else f"… {line[-(_MAX_MESSAGE - 100) :]}"


def shortened(message: str) -> str:
    return message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 1]}…"
