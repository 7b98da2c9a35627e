"""The Job of a BatchJob: a pod that runs `octavo batch run` from one URL to another.

The key of the run is the BatchJob's uid, so that every pod of it, at whatever point the one before
ended, goes on with the same batch. The pod needs no right in the cluster, and has none.
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

from octavo_operator.children.pod import TMP, Container, Mount, claim_mount, literal, pod_spec
from octavo_operator.children.pod_template import laid_over
from octavo_operator.desired import Manifest
from octavo_operator.names import (
    BATCH_COMPONENT,
    BATCH_JOB,
    BATCH_SPEC,
    COMPONENT,
    MANAGED_BY,
    MANAGED_BY_VALUE,
)
from octavo_operator.settings import OperatorSettings
from octavo_protocol.batch_runs import BATCH_JOB_NOTE, errors_beside
from octavo_protocol.resources.batch_job import BatchJob
from octavo_protocol.resources.metadata import Metadata
from octavo_protocol.resources.pod_spec import PodTemplateSpec

# Pods that fail are made again after 10, 20, 40, ... 360 s: about an hour for a router, a Secret or
# a bucket to come up.
_MAX_RETRIES = 14
# Once it is told to stop, it ends: the batch goes on without it.
_STOP_S = 10
_ACCOUNT = "default"
_CLAIMS = "/claims"
_SUMMARY = "/dev/termination-log"
_RESOURCES = {
    "requests": {"cpu": "50m", "memory": "128Mi"},
    "limits": {"memory": "512Mi"},
}


def batch_job(job: BatchJob, uid: str, model: str | None, settings: OperatorSettings) -> Manifest:
    """The Job. model: the served name that all lines ask; None: each line names its own."""
    spec, metadata = job.spec, job.metadata
    overlay = reduce(laid_over, (PodTemplateSpec(), settings.pod_defaults, spec.pod_template))
    pod = pod_spec(_container(job, uid, model, settings), (TMP, *_mounts(job)), overlay, _ACCOUNT)
    pod |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": _STOP_S}
    of_pod: Manifest = {"labels": {**overlay.labels, **_labels(metadata)}}
    if overlay.annotations:
        of_pod["annotations"] = overlay.annotations
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "labels": _labels(metadata),
            "annotations": {BATCH_SPEC: spec.model_dump_json(by_alias=True, exclude_defaults=True)},
        },
        "spec": {
            "backoffLimit": _MAX_RETRIES,
            "template": {"metadata": of_pod, "spec": pod},
        },
    }


def errors_url(job: BatchJob) -> str:
    """Where the requests that fail go."""
    output = job.spec.output
    return output.errors_url or errors_beside(output.url)


def _labels(metadata: Metadata) -> dict[str, str]:
    return {
        MANAGED_BY: MANAGED_BY_VALUE,
        BATCH_JOB: metadata.name,
        COMPONENT: BATCH_COMPONENT,
    }


def _container(job: BatchJob, uid: str, model: str | None, settings: OperatorSettings) -> Container:
    spec = job.spec
    return Container(
        name="batch",
        image=spec.image or settings.batch_image or settings.runtime_image,
        image_pull_policy=settings.image_pull_policy,
        args=("batch", "run", *_arguments(job, uid, model, settings)),
        env=tuple(_environment(job)),
        secrets=() if spec.secret_ref is None else (spec.secret_ref.name,),
        resources=_RESOURCES,
    )


def _arguments(
    job: BatchJob, uid: str, model: str | None, settings: OperatorSettings
) -> Iterable[str]:
    spec, metadata = job.spec, job.metadata
    yield from ("--input", literal(_seen(spec.input.url)))
    yield from ("--output", literal(_seen(spec.output.url)))
    yield from ("--errors", literal(_seen(errors_url(job))))
    if model is not None:
        yield from ("--model", literal(model))
    yield from ("--endpoint", spec.endpoint, "--window", spec.completion_window)
    yield from ("--priority", str(spec.priority))
    yield from ("--key", uid)
    yield from ("--metadata", f"{BATCH_JOB_NOTE}={metadata.namespace}/{metadata.name}")
    yield from ("--url", literal(spec.router.url or settings.router_url))
    yield from ("--summary-file", _SUMMARY)


def _environment(job: BatchJob) -> Iterable[Mapping[str, Any]]:
    key = job.spec.router.api_key_secret_ref
    if key is not None:
        source = {"secretKeyRef": {"name": key.name, "key": key.key}}
        yield {"name": "OCTAVO_API_KEY", "valueFrom": source}


def _mounts(job: BatchJob) -> Iterable[Mount]:
    """The claims of its files; one that is only read cannot be written."""
    written = {_claim(job.spec.output.url), _claim(errors_url(job))} - {None}
    claims = written | ({_claim(job.spec.input.url)} - {None})
    for number, claim in enumerate(sorted(filter(None, claims))):
        yield claim_mount(
            claim,
            read_only=claim not in written,
            name=f"claim-{number}",
            path=f"{_CLAIMS}/{claim}",
        )


def _claim(url: str) -> str | None:
    rest = url.removeprefix("pvc://")
    return None if rest == url else rest.partition("/")[0]


def _seen(url: str) -> str:
    """Where the container finds it."""
    return f"{_CLAIMS}/{url.removeprefix('pvc://')}" if _claim(url) else url
