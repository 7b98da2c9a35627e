"""How a BatchJob ended, or what it waits for.

The truth about the end is what the pod said last: it knows how the batch ended, and that the files
are written. Before that, the batch's record in Redis tells how far it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from octavo_operator.batch_jobs.observed import ObservedBatchJob
from octavo_operator.objects import (
    KubernetesObject,
    condition,
    members,
    name,
    number,
    text,
    time,
    value,
)
from octavo_operator.reasons import Reason
from octavo_operator.replicas import pod_failure, shortened
from octavo_protocol.batch_runs import RunSummary, decode_summary
from octavo_protocol.openai.batches import BatchStatus

_ENDS = {
    BatchStatus.COMPLETED: Reason.COMPLETED,
    BatchStatus.FAILED: Reason.BATCH_FAILED,
    BatchStatus.EXPIRED: Reason.BATCH_EXPIRED,
    BatchStatus.CANCELLED: Reason.BATCH_CANCELLED,
}


@dataclass(frozen=True, slots=True)
class End:
    """summary: the pod's last words; None where it left none."""

    reason: Reason
    message: str
    at: datetime
    summary: RunSummary | None = None

    @property
    def is_complete(self) -> bool:
        return self.reason is Reason.COMPLETED


def end_of(observed: ObservedBatchJob) -> End | None:
    """None: it goes on."""
    for pod in _newest_first(observed.pods):
        for container in members(pod, "status", "containerStatuses"):
            ended = value(container, "state", "terminated")
            summary = decode_summary(text(ended, "message"))
            if summary is not None and summary.status in _ENDS:
                reason = _ENDS[BatchStatus(summary.status)]
                at = time(ended, "finishedAt") or observed.now
                return End(reason, summary.message, at, summary)
    return _end_of_job(observed)


def _end_of_job(observed: ObservedBatchJob) -> End | None:
    """Of a Job that has ended by itself."""
    failed, complete = condition(observed.job, "Failed"), condition(observed.job, "Complete")
    if text(failed, "status") == "True":
        why = problem_of(observed.pods)
        message = text(failed, "message") if why is None else why[1]
        at = time(failed, "lastTransitionTime") or observed.now
        return End(Reason.GAVE_UP, f"its pods failed too often: {message}", at)
    if text(complete, "status") == "True":
        at = time(complete, "lastTransitionTime") or observed.now
        return End(Reason.COMPLETED, "its pod ended well", at)
    return None


def problem_of(pods: Sequence[KubernetesObject]) -> tuple[Reason, str] | None:
    """Why the newest pod cannot go on by itself."""
    for pod in _newest_first(pods)[:1]:
        if text(pod, "status", "phase") == "Succeeded":
            return None
        if (failure := pod_failure(pod)) is not None:
            return Reason(failure[0].value), shortened(f"pod {name(pod)}: {failure[1]}")
    return None


def told_elsewhere(observed: ObservedBatchJob) -> str | None:
    """What can be said of a batch that Redis of this installation does not have, or not yet, while
    its pod runs with a router that the spec names; None otherwise.
    """
    url = text(observed.resource, "spec", "router", "url")
    pods = _newest_first(observed.pods)[:1]
    runs = [pod for pod in pods if text(pod, "status", "phase") == "Running"]
    if not url or not runs or observed.batch is not None or problem_of(pods) is not None:
        return None
    return (
        f"pod {name(runs[0])} has the requests answered by {url}; lines are counted once the "
        "operator sees the batch: where that router has another Redis, at the end"
    )


def waiting_for(observed: ObservedBatchJob) -> tuple[Reason, str]:
    """Why no batch is being worked on."""
    if (problem := problem_of(observed.pods)) is not None:
        return problem
    if observed.batch is not None and observed.batch.has_ended:
        return Reason.WRITING_RESULTS, f"{observed.batch.id} has ended; its results are written"
    if observed.batch is not None:
        return Reason.STARTING, f"{observed.batch.id} is {observed.batch.status}"
    if not observed.pods:
        return Reason.STARTING, "its pod is being made"
    pod = _newest_first(observed.pods)[0]
    phase = text(pod, "status", "phase") or "Pending"
    return Reason.STARTING, f"pod {name(pod)} is {phase}; it submits the requests"


def lines_of(observed: ObservedBatchJob, end: End | None) -> tuple[int, int, int]:
    """(total, completed, failed): the newest that is known."""
    if end is not None and end.summary is not None:
        return end.summary.total, end.summary.completed, end.summary.failed
    if observed.batch is not None:
        counts = observed.batch.as_answer().request_counts
        return counts.total, counts.completed, counts.failed
    counts_now = value(observed.resource, "status", "counts")
    return (
        number(counts_now, "total"),
        number(counts_now, "completed"),
        number(counts_now, "failed"),
    )


def _newest_first(pods: Sequence[KubernetesObject]) -> list[KubernetesObject]:
    def age(pod: KubernetesObject) -> tuple[str, str]:
        return text(pod, "metadata", "creationTimestamp"), name(pod)

    return sorted(pods, key=age, reverse=True)
