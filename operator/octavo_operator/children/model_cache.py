"""Where a replica finds its model: a claim's folder for it, and the Job that fills that folder.

A Job's template cannot change, so its name has a hash of the whole of it: other credentials,
another image or another model are another Job. The folder goes by source and revision alone, and a
complete one is not fetched again, so such a Job ends at once. Replicas mount the claim read-only.
"""

import hashlib
import json
import re
from functools import reduce

from octavo_operator.children.placement import of_downloads
from octavo_operator.children.pod import (
    CACHE_PATH,
    EMPTY,
    MODELS_PATH,
    TMP,
    Container,
    Mount,
    claim_mount,
    literal,
    pod_spec,
)
from octavo_operator.children.pod_template import laid_over
from octavo_operator.children.quantity import canonical
from octavo_operator.children.redis_secret import redis_environment
from octavo_operator.desired import Manifest
from octavo_operator.names import DOWNLOAD_COMPONENT, labels, object_metadata
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.model_source import ModelSource

# After so many failed pods the Job has failed; the operator makes it again later.
_MAX_RETRIES = 4
_MAX_SLUG = 30


def served_path(deployment: ModelDeployment) -> str:
    """What `octavo serve` is told to serve."""
    model = deployment.spec.model
    if deployment.spec.cache.claim is not None:
        return f"{MODELS_PATH}/{folder_key(model)}"
    if model.claim is not None:
        return f"{MODELS_PATH}/{model.claim[1]}".rstrip("/")
    return model.source


def mounts(deployment: ModelDeployment) -> list[Mount]:
    """The volume that holds the model, if one does."""
    claim = deployment.spec.model.claim
    if deployment.spec.cache.claim is not None:
        return [claim_mount(claim_name(deployment), read_only=True)]
    return [] if claim is None else [claim_mount(claim[0], read_only=True)]


def folder_key(model: ModelSource) -> str:
    """The folder's name in the claim: readable, and different for different models."""
    digest = hashlib.sha256(f"{model.source}\n{model.revision or ''}".encode()).hexdigest()[:10]
    last = model.source.rstrip("/").rpartition("/")[2].lower()
    slug = re.sub(r"[^a-z0-9]+", "-", last)[:_MAX_SLUG].strip("-")
    return f"{slug}-{digest}" if slug else digest


def claim_name(deployment: ModelDeployment) -> str:
    """The claim that a cache in a claim is in."""
    cache = deployment.spec.cache.claim
    existing = None if cache is None else cache.name
    return existing or f"{deployment.metadata.name}-models"


def claim(deployment: ModelDeployment) -> Manifest | None:
    """The PersistentVolumeClaim to make; None where there is no cache or it exists already."""
    cache = deployment.spec.cache.claim
    if cache is None or cache.name is not None:
        return None
    spec: Manifest = {
        "accessModes": [cache.access_mode],
        "resources": {"requests": {"storage": canonical(cache.size)}},
    }
    if cache.storage_class_name is not None:
        spec["storageClassName"] = cache.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": object_metadata(
            deployment.metadata, claim_name(deployment), DOWNLOAD_COMPONENT
        ),
        "spec": spec,
    }


def download_job(deployment: ModelDeployment, settings: OperatorSettings) -> Manifest | None:
    """The Job that fetches the model into the claim; None without such a cache."""
    if deployment.spec.cache.claim is None:
        return None
    name = deployment.metadata.name
    templates = of_downloads(deployment), settings.pod_defaults, deployment.spec.pod_template
    overlay = reduce(laid_over, templates)
    made = (Mount("cache", CACHE_PATH, EMPTY), TMP)
    claims = (claim_mount(claim_name(deployment), read_only=False),)
    pod = pod_spec(_container(deployment, settings), made + claims, overlay, name)
    metadata = {"labels": {**overlay.labels, **labels(name, DOWNLOAD_COMPONENT)}}
    if overlay.annotations:
        metadata["annotations"] = overlay.annotations
    template = {"metadata": metadata, "spec": {**pod, "restartPolicy": "Never"}}
    digest = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": object_metadata(
            deployment.metadata, f"{name[:40]}-model-{digest}", DOWNLOAD_COMPONENT
        ),
        "spec": {"backoffLimit": _MAX_RETRIES, "template": template},
    }


def _container(deployment: ModelDeployment, settings: OperatorSettings) -> Container:
    model, metadata = deployment.spec.model, deployment.metadata
    revision = [] if model.revision is None else ["--revision", literal(model.revision)]
    return Container(
        name="download",
        image=deployment.spec.image or settings.runtime_image,
        image_pull_policy=settings.image_pull_policy,
        args=(
            *("models", "pull", literal(model.source), *revision),
            *("--to", f"{MODELS_PATH}/{folder_key(model)}"),
            *("--namespace", metadata.namespace, "--deployment", metadata.name),
        ),
        env=(redis_environment(deployment),),
        secrets=() if model.secret_ref is None else (model.secret_ref.name,),
        resources={"requests": {"cpu": "500m"}},
    )
