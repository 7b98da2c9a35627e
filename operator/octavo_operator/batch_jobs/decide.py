"""The decision: from one observation of a BatchJob to its Job, its status and its end. Pure."""

from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from octavo_operator.batch_jobs.observed import DesiredBatchJob, ObservedBatchJob
from octavo_operator.batch_jobs.outcome import (
    End,
    end_of,
    lines_of,
    problem_of,
    told_elsewhere,
    waiting_for,
)
from octavo_operator.children.batch_job import batch_job
from octavo_operator.conditions import Finding, joined, old_conditions, transitions
from octavo_operator.desired import Manifest
from octavo_operator.names import BATCH_SPEC
from octavo_operator.objects import KubernetesObject, condition, number, text, time, value
from octavo_operator.reasons import Reason
from octavo_operator.settings import OperatorSettings
from octavo_protocol.batch_runs import errors_beside
from octavo_protocol.openai.batches import BatchStatus
from octavo_protocol.resources.base import FieldError
from octavo_protocol.resources.batch_job import BatchJob, BatchJobSpec
from octavo_protocol.resources.parse import parse_batch_job
from octavo_protocol.resources.status import (
    BatchConditionType,
    BatchCounts,
    BatchJobStatus,
    BatchPhase,
)

_TARGET_S = 10.0  # how often a ModelDeployment that is not there is looked for
_WORKED_ON = {BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING}

Acceptance = tuple[Reason, str]


def decide(observed: ObservedBatchJob, settings: OperatorSettings) -> DesiredBatchJob:
    """What is wanted. Raises nothing, whatever the objects hold."""
    if value(observed.resource, "metadata", "deletionTimestamp") is not None:
        return DesiredBatchJob(status=_status_as_it_is(observed))
    if _has_ended(observed):
        return _afterwards(observed)
    parsed = parse_batch_job(observed.resource)
    acceptance = _acceptance(parsed, observed, settings)
    end = end_of(observed)
    status = _status(observed, acceptance, end)
    old = old_conditions(observed.resource)
    job = None
    if acceptance[0] in (Reason.ACCEPTED, Reason.APPLY_FAILED) and isinstance(parsed, BatchJob):
        job = _job(parsed, observed, settings)
    return DesiredBatchJob(
        job=job,
        status=status.model_dump(mode="json", by_alias=True, exclude_none=True),
        events=tuple(transitions(status.conditions, old)),
        look_again_s=_TARGET_S if acceptance[0] is Reason.TARGET_MISSING else None,
    )


def _job(
    parsed: BatchJob, observed: ObservedBatchJob, settings: OperatorSettings
) -> Manifest | None:
    """A Job's template cannot change: one that is there stays. One that somebody deleted is made
    again, as the spec is then, and goes on with the same batch.
    """
    if observed.job is not None:
        return None
    model = parsed.spec.model if parsed.spec.target is None else observed.target_model
    return batch_job(parsed, text(observed.resource, "metadata", "uid"), model, settings)


def _acceptance(
    parsed: BatchJob | list[FieldError], observed: ObservedBatchJob, settings: OperatorSettings
) -> Acceptance:
    if isinstance(parsed, list):
        return Reason.INVALID, "; ".join(map(str, parsed))
    if not (parsed.spec.router.url or settings.router_url):
        return Reason.INVALID, "spec.router.url: write one; the operator knows of no router"
    if (before := _spec_of_job(observed)) is not None:
        broken = [
            rule.message
            for rule in BatchJobSpec.transition_rules
            if not rule.is_met(parsed.spec, before)
        ]
        if broken:
            return Reason.SPEC_CHANGED, f"the batch goes on as it was submitted: {broken[0]}"
    target = parsed.spec.target
    if target is not None and observed.target_model is None and observed.job is None:
        return Reason.TARGET_MISSING, f"there is no ModelDeployment {target.name} here"
    if observed.apply_error:
        return Reason.APPLY_FAILED, observed.apply_error
    return Reason.ACCEPTED, "its Job has the batch answered"


def _spec_of_job(observed: ObservedBatchJob) -> BatchJobSpec | None:
    """What the Job was made from; None where it does not say."""
    try:
        return BatchJobSpec.model_validate_json(
            text(observed.job, "metadata", "annotations", BATCH_SPEC)
        )
    except ValidationError:
        return None


def _status(observed: ObservedBatchJob, acceptance: Acceptance, end: End | None) -> BatchJobStatus:
    total, completed, failed = lines_of(observed, end)
    accepted = _found(BatchConditionType.ACCEPTED, acceptance[0] is Reason.ACCEPTED, *acceptance)
    findings = [accepted, *_state(observed, acceptance, end)]
    generation = number(observed.resource, "metadata", "generation")
    urls = _urls(observed)
    summary, batch = None if end is None else end.summary, observed.batch
    answer = None if batch is None else batch.as_answer(observed.now.timestamp())
    return BatchJobStatus(
        observed_generation=generation,
        phase=_phase(findings),
        batch_id=_batch_id(observed, end),
        counts=BatchCounts(total=total, completed=completed, failed=failed),
        progress_percent=100 * (completed + failed) // total if total else 0,
        estimated_completion_at=None
        if answer is None or end is not None
        else _moment(answer.estimated_completion_at),
        started_at=time(observed.resource, "status", "startedAt")
        or (None if answer is None else _moment(answer.in_progress_at)),
        completed_at=None if end is None else end.at,
        output_url=None if summary is None or summary.output is None else urls[0],
        errors_url=None if summary is None or summary.errors is None else urls[1],
        conditions=joined(findings, old_conditions(observed.resource), generation, observed.now),
    )


def _state(
    observed: ObservedBatchJob, acceptance: Acceptance, end: End | None
) -> tuple[Finding, Finding, Finding]:
    """Running, Complete and Failed."""
    if end is not None:
        return (
            _found(BatchConditionType.RUNNING, False, end.reason, end.message),
            _found(BatchConditionType.COMPLETE, end.is_complete, end.reason, end.message),
            _found(BatchConditionType.FAILED, not end.is_complete, end.reason, end.message),
        )
    told = "it has not ended"
    return (
        _running(observed, acceptance),
        _found(BatchConditionType.COMPLETE, False, Reason.NOT_FINISHED, told),
        _found(BatchConditionType.FAILED, False, Reason.NOT_FINISHED, told),
    )


def _running(observed: ObservedBatchJob, acceptance: Acceptance) -> Finding:
    batch = observed.batch
    if batch is not None and batch.status in _WORKED_ON:
        message = f"{batch.id} is {batch.status}"
        if (problem := problem_of(observed.pods)) is not None:
            message += f", but nobody waits for it: {problem[1]}"
        if details := batch.fields.get("status_details"):
            message += f"; it waits: {details}"
        return _found(BatchConditionType.RUNNING, True, Reason.IN_PROGRESS, message)
    if (elsewhere := told_elsewhere(observed)) is not None:
        return _found(BatchConditionType.RUNNING, True, Reason.IN_PROGRESS, elsewhere)
    is_planned = acceptance[0] is Reason.ACCEPTED or observed.job is not None
    reason, message = waiting_for(observed) if is_planned else acceptance
    return _found(BatchConditionType.RUNNING, False, reason, message)


def _found(kind: BatchConditionType, holds: bool, reason: Reason, message: str) -> Finding:
    return Finding(kind, "True" if holds else "False", reason, message)


def _phase(findings: list[Finding]) -> BatchPhase:
    holding = {each.type for each in findings if each.status == "True"}
    for kind, phase in (
        (BatchConditionType.COMPLETE, BatchPhase.COMPLETE),
        (BatchConditionType.FAILED, BatchPhase.FAILED),
        (BatchConditionType.RUNNING, BatchPhase.RUNNING),
    ):
        if kind in holding:
            return phase
    return BatchPhase.PENDING


def _batch_id(observed: ObservedBatchJob, end: End | None) -> str | None:
    if end is not None and end.summary is not None:
        return end.summary.batch_id
    if observed.batch is not None:
        return observed.batch.id
    return text(observed.resource, "status", "batchId") or None


def _urls(observed: ObservedBatchJob) -> tuple[str, str]:
    """Of the answers, and of the requests that failed; as the spec has them."""
    output, errors = (
        text(observed.resource, "spec", "output", field) for field in ("url", "errorsUrl")
    )
    return output, errors or errors_beside(output)


def _moment(unix: int | None) -> datetime | None:
    return None if unix is None else datetime.fromtimestamp(unix, UTC)


def _has_ended(observed: ObservedBatchJob) -> bool:
    return any(
        text(condition(observed.resource, kind), "status") == "True"
        for kind in (BatchConditionType.COMPLETE, BatchConditionType.FAILED)
    )


def _afterwards(observed: ObservedBatchJob) -> DesiredBatchJob:
    """Nothing happens any more, but that it is deleted in its time."""
    status = _status_as_it_is(observed)
    stops_job = not _is_over(observed.job)
    lifetime = value(observed.resource, "spec", "ttlSecondsAfterFinished")
    ended = time(observed.resource, "status", "completedAt")
    if not isinstance(lifetime, int) or ended is None:
        return DesiredBatchJob(status=status, stops_job=stops_job)
    left_s = (ended + timedelta(seconds=lifetime) - observed.now).total_seconds()
    if left_s <= 0:
        return DesiredBatchJob(status=status, is_over=True)
    return DesiredBatchJob(status=status, stops_job=stops_job, look_again_s=left_s)


def _is_over(job: KubernetesObject | None) -> bool:
    """It makes no pod any more."""
    ends = (text(condition(job, kind), "status") == "True" for kind in ("Complete", "Failed"))
    return job is None or value(job, "spec", "parallelism") == 0 or any(ends)


def _status_as_it_is(observed: ObservedBatchJob) -> Manifest:
    found = value(observed.resource, "status")
    return dict(found) if isinstance(found, dict) else {}
