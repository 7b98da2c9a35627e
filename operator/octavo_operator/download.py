"""How far the model's way into its claim is, from what is seen of the download Job."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from octavo_operator.children import model_cache
from octavo_operator.children.pod import MODELS_PATH
from octavo_operator.children.workload import KIND
from octavo_operator.names import COMPONENT, DOWNLOAD_COMPONENT
from octavo_operator.objects import (
    KubernetesObject,
    condition,
    label,
    members,
    name,
    text,
    time,
    value,
)
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.replicas import pod_failure, shortened
from octavo_operator.settings import OperatorSettings
from octavo_protocol.records import DownloadRecord
from octavo_protocol.resources.model_deployment import ModelDeployment

# A Job that failed is made again after this time: credentials may have been repaired.
_RETRY = timedelta(minutes=5)
_STEP_PERCENT = 5


@dataclass(frozen=True, slots=True)
class Download:
    """is_complete: the claim holds the model. retry_s: seconds until a failed Job is made again,
    0 when that is due; None where it has not failed.
    """

    job: str
    is_complete: bool
    reason: Reason
    message: str
    retry_s: float | None = None


def download(
    deployment: ModelDeployment, observed: Observed, settings: OperatorSettings
) -> Download | None:
    """None where no claim is to be filled."""
    manifest = model_cache.download_job(deployment, settings)
    if manifest is None:
        return None
    job_name = manifest["metadata"]["name"]
    job = observed.child("Job", job_name)
    claim, source = model_cache.claim_name(deployment), deployment.spec.model.source
    if text(condition(job, "Complete"), "status") == "True" or _is_served(deployment, observed):
        return Download(job_name, True, Reason.DOWNLOADED, f"claim {claim} holds {source}")
    if text(condition(job, "Failed"), "status") == "True":
        return _failed(job, job_name, source, observed)
    problem = _pod_problem(job_name, observed.pods)
    told = f"Job {job_name} fetches {source} into claim {claim}"
    if observed.download is not None and observed.download.folder == _folder(deployment):
        told += _progress(observed.download)
    if problem is not None:
        return Download(job_name, False, Reason.DOWNLOAD_FAILING, f"{told}; {problem}")
    return Download(job_name, False, Reason.DOWNLOADING, told)


def _failed(
    job: KubernetesObject | None, job_name: str, source: str, observed: Observed
) -> Download:
    since = time(condition(job, "Failed"), "lastTransitionTime") or observed.now
    left = max(0.0, (since + _RETRY - observed.now).total_seconds())
    why = _pod_problem(job_name, observed.pods) or text(condition(job, "Failed"), "message")
    again = f"{since + _RETRY:%Y-%m-%dT%H:%M:%SZ}"
    message = f"Job {job_name} could not fetch {source}: {why}; it is made again at {again}"
    return Download(job_name, False, Reason.DOWNLOAD_FAILED, message, left)


def _pod_problem(job_name: str, pods: Sequence[KubernetesObject]) -> str | None:
    """What the last of the Job's pods that failed says, also while the next one tries again."""
    failed = [
        (text(pod, "metadata", "creationTimestamp"), name(pod), failure[1])
        for pod in pods
        if label(pod, COMPONENT) == DOWNLOAD_COMPONENT
        and label(pod, "job-name") == job_name
        and (failure := pod_failure(pod)) is not None
    ]
    if not failed:
        return None
    _, pod_name, message = max(failed)
    return shortened(f"pod {pod_name}: {message}")


def _progress(record: DownloadRecord) -> str:
    """In steps, so that the status does not change every second."""
    told = f": {shortened(record.stage)}"
    if record.total_bytes:
        percent = 100 * record.done_bytes // record.total_bytes
        step = percent - percent % _STEP_PERCENT
        return f"{told}, {step}% of {record.total_bytes / 2**30:.1f} GiB"
    return f"{told}, {record.done_bytes / 2**30:.0f} GiB done" if record.done_bytes else told


def _folder(deployment: ModelDeployment) -> str:
    """Where the containers see the model."""
    return f"{MODELS_PATH}/{model_cache.folder_key(deployment.spec.model)}"


def _is_served(deployment: ModelDeployment, observed: Observed) -> bool:
    """The workload serves this very folder already; it came to that when the Job had ended."""
    pod = value(observed.child(KIND, deployment.metadata.name), "spec", "template", "spec")
    arguments = [
        argument
        for container in members(pod, "containers")
        if isinstance(found := container.get("args"), list)
        for argument in found
    ]
    claims = [
        text(volume, "persistentVolumeClaim", "claimName") for volume in members(pod, "volumes")
    ]
    return _folder(deployment) in arguments and model_cache.claim_name(deployment) in claims
