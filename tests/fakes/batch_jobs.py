"""What an operator may observe of a BatchJob, built for tests."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec

from octavo_operator.apply import prepared
from octavo_operator.batch_jobs.observed import DesiredBatchJob, ObservedBatchJob
from octavo_operator.observed import KubernetesObject
from octavo_protocol.batch_record import BatchRecord
from octavo_protocol.batch_runs import BATCH_JOB_NOTE, KEY_NOTE, RunSummary
from tests.fakes.observations import NOW

UID = "uid-7"
BATCH = "batch_1"


def batch_job(**spec: Any) -> dict[str, Any]:
    """A BatchJob as the API server gives it."""
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {
            "name": "nightly",
            "namespace": "team",
            "uid": UID,
            "generation": 1,
            "creationTimestamp": "2026-03-01T11:00:00Z",
        },
        "spec": {
            "input": {"url": "s3://b/in.jsonl"},
            "output": {"url": "s3://b/out.jsonl"},
            "model": "chat",
            **spec,
        },
    }


def observe(resource: KubernetesObject | None = None, **fields: Any) -> ObservedBatchJob:
    return ObservedBatchJob(now=NOW, resource=resource or batch_job(), **fields)


def later(
    observed: ObservedBatchJob, desired: DesiredBatchJob, seconds: float = 60, **fields: Any
) -> ObservedBatchJob:
    """What is observed when `desired` was carried out, and `fields` have come true since."""
    job = observed.job
    if desired.job is not None:
        job = prepared(desired.job, observed.resource)
    resource = {**observed.resource, "status": desired.status}
    now = observed.now + timedelta(seconds=seconds)
    return replace(observed, **{"now": now, "job": job, "resource": resource, **fields})


def batch(status: str = "in_progress", **fields: str) -> BatchRecord:
    """Its batch: 40 lines of which 30 have an answer and two an error."""
    notes = {KEY_NOTE: UID, BATCH_JOB_NOTE: "team/nightly"}
    began = int(NOW.timestamp()) - 320
    known = {
        "owner": "default",
        "status": status,
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "metadata": msgspec.json.encode(notes).decode(),
        "created_at": str(began),
        "in_progress_at": str(began),
        "expires_at": str(began + 86400),
    }
    counts = {"total": "40", "completed": "30", "failed": "2"}
    return BatchRecord(BATCH, {**known, **counts, **fields})


def pod(name: str = "nightly-1", created: str = "2026-03-01T11:00:00Z", **status: Any) -> Any:
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": status}


def ended_pod(message: str | RunSummary, code: int = 0, **metadata: str) -> dict[str, Any]:
    """A pod whose container said `message` last."""
    if isinstance(message, RunSummary):
        message = msgspec.json.encode(message).decode()
    terminated = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "message": message,
        "finishedAt": "2026-03-01T11:58:00Z",
    }
    container = {"name": "batch", "state": {"terminated": terminated}, "ready": False}
    phase = "Failed" if code else "Succeeded"
    found: dict[str, Any] = pod(**metadata, phase=phase, containerStatuses=[container])
    return found


def summary(status: str = "completed", **fields: Any) -> RunSummary:
    counts = {"total": 40, "completed": 38, "failed": 2}
    urls = {"output": "/claims/x/out.jsonl", "errors": "/claims/x/out.errors.jsonl"}
    message = f"{status}: 38 of 40 answered, 2 failed"
    return RunSummary(
        **{"batch_id": BATCH, "status": status, "message": message, **counts, **urls, **fields}
    )


def conditions(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """(status, reason) by type."""
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}
