"""The pod template of a replica: `octavo serve` with the spec's settings, and what it runs on.

Everything that changes the template replaces all replicas, so nothing is in it that need not be:
no number of replicas, no metadata of the deployment, no LoraAdapter.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import reduce
from math import ceil, floor
from typing import Any

from octavo_operator.children import model_cache
from octavo_operator.children.placement import of_replicas
from octavo_operator.children.pod import CACHE_PATH, EMPTY, TMP, Container, Mount, literal, pod_spec
from octavo_operator.children.pod_template import laid_over
from octavo_operator.children.quantity import amount, canonical
from octavo_operator.children.redis_secret import redis_environment
from octavo_operator.desired import Manifest
from octavo_operator.names import (
    REDIS_HASH,
    REPLICA_COMPONENT,
    TEMPLATE_HASH,
    labels,
    selector,
)
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.engine_spec import serve_flags
from octavo_protocol.resources.model_deployment import LoraSpec, ModelDeployment, lora_flags
from octavo_protocol.resources.pod_spec import PodTemplateSpec

PORT = 8000
CONTAINER = "engine"
RUNTIME_LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
_PROBE_PERIOD_S = 2
# Between the end of draining and the kill: what the process needs to end.
_STOP_MARGIN_S = 30
# Routers hear of a stop at once; a Service's endpoints take a moment to forget the pod.
_ENDPOINTS_DELAY_S = 5


def pod_template(deployment: ModelDeployment, settings: OperatorSettings) -> Manifest:
    """The template, with its own hash among the labels."""
    spec, name = deployment.spec, deployment.metadata.name
    overlay = reduce(laid_over, (of_replicas(deployment), settings.pod_defaults, spec.pod_template))
    pod = pod_spec(_container(deployment, overlay, settings), _mounts(deployment), overlay, name)
    pod["terminationGracePeriodSeconds"] = spec.rollout.drain_seconds + _STOP_MARGIN_S
    optional = {
        "topologySpreadConstraints": _constraints(name, overlay.topology_spread_constraints),
        "runtimeClassName": overlay.runtime_class_name,
        "resourceClaims": overlay.resource_claims,
    }
    pod |= {key: value for key, value in optional.items() if value}
    metadata = {
        "labels": {**overlay.labels, **labels(name, REPLICA_COMPONENT)},
        "annotations": {**overlay.annotations, REDIS_HASH: _short_digest(settings.redis_url)},
    }
    digest = _digest(json.dumps([metadata, pod], sort_keys=True))
    metadata["labels"] |= {TEMPLATE_HASH: digest}
    return {"metadata": metadata, "spec": pod}


def lora_room(deployment: ModelDeployment) -> LoraSpec | None:
    """Room for adapters that the replicas have; None: they take no adapter."""
    return deployment.spec.lora_room


def secrets(deployment: ModelDeployment) -> list[str]:
    """Secrets whose keys are a replica's environment: for the adapters of the spec, and for the
    model where no claim holds it.
    """
    sources = [adapter.model for adapter in deployment.spec.adapters]
    if deployment.spec.cache.claim is None:
        sources.insert(0, deployment.spec.model)
    names = (source.secret_ref.name for source in sources if source.secret_ref is not None)
    return list(dict.fromkeys(names))


def _container(
    deployment: ModelDeployment, overlay: PodTemplateSpec, settings: OperatorSettings
) -> Container:
    spec = deployment.spec
    return Container(
        name=CONTAINER,
        image=spec.image or settings.runtime_image,
        image_pull_policy=settings.image_pull_policy,
        args=tuple(_arguments(deployment)),
        env=tuple(_environment(deployment)),
        secrets=tuple(secrets(deployment)),
        resources=_resources(deployment, overlay),
        more={
            "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
            "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_ENDPOINTS_DELAY_S)]}}},
            **_probes(spec.rollout.start_seconds),
        },
    )


def _arguments(deployment: ModelDeployment) -> Iterable[str]:
    spec, metadata = deployment.spec, deployment.metadata
    yield from ("serve", literal(model_cache.served_path(deployment)))
    if spec.model.revision is not None and spec.cache.claim is None:
        yield from ("--revision", literal(spec.model.revision))
    for name in spec.served_names:
        yield from ("--served-model-name", literal(name))
    yield from ("--host", "::", "--port", str(PORT))
    yield from ("--namespace", metadata.namespace, "--deployment", metadata.name)
    yield from ("--replica-id", "$(POD_NAME)", "--advertise-url", f"http://$(POD_IP):{PORT}")
    yield from ("--drain-timeout", str(spec.rollout.drain_seconds))
    # Never auto: with a GPU asked for and none found, a replica would quietly serve on the CPU.
    yield from ("--device", "cuda" if spec.num_gpus else "cpu")
    if spec.num_gpus == 0 and spec.resources.cpu is not None:
        yield from ("--threads", str(max(1, floor(amount(spec.resources.cpu)))))
    yield from lora_flags(lora_room(deployment))
    yield from serve_flags(spec.engine)


def _environment(deployment: ModelDeployment) -> Iterable[Mapping[str, Any]]:
    for name, path in (("POD_NAME", "metadata.name"), ("POD_IP", "status.podIP")):
        yield {
            "name": name,
            "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}},
        }
    yield redis_environment(deployment)
    if lora_room(deployment) is not None:  # operator and routers have replicas load adapters
        yield {"name": RUNTIME_LORA, "value": "1"}
    if deployment.spec.cache.node_path is not None:
        yield {"name": "TRITON_CACHE_DIR", "value": f"{CACHE_PATH}/triton"}


def _resources(deployment: ModelDeployment, overlay: PodTemplateSpec) -> Manifest:
    resources = deployment.spec.resources
    both: dict[str, str] = {}
    if resources.memory is not None:
        both["memory"] = canonical(resources.memory)
    if deployment.spec.num_gpus:
        both[resources.gpu.resource_name] = str(deployment.spec.num_gpus)
    made: Manifest = {"requests": {"cpu": canonical(resources.cpu or "1"), **both}, "limits": both}
    made["claims"] = [{"name": each["name"]} for each in overlay.resource_claims if "name" in each]
    return {key: value for key, value in made.items() if value}


def _mounts(deployment: ModelDeployment) -> tuple[Mount, ...]:
    spec = deployment.spec
    cache = EMPTY
    if (node_path := spec.cache.node_path) is not None:
        cache = {"hostPath": {"path": node_path.path, "type": "DirectoryOrCreate"}}
    mounts = [Mount("cache", CACHE_PATH, cache), TMP, *model_cache.mounts(deployment)]
    size = spec.resources.shared_memory or ("1Gi" if spec.num_gpus > 1 else None)
    if size is not None:
        memory = {"medium": "Memory", "sizeLimit": canonical(size)}
        mounts.append(Mount("shared-memory", "/dev/shm", {"emptyDir": memory}))
    return tuple(mounts)


def _probes(start_seconds: int) -> Manifest:
    return {
        "startupProbe": {
            **_probe("/ready", _PROBE_PERIOD_S),
            "failureThreshold": ceil(start_seconds / _PROBE_PERIOD_S),
        },
        "readinessProbe": {**_probe("/ready", _PROBE_PERIOD_S), "failureThreshold": 2},
        "livenessProbe": {**_probe("/health", 10), "failureThreshold": 6},
    }


def _probe(path: str, period_s: int) -> Manifest:
    get = {"path": path, "port": PORT, "scheme": "HTTP"}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 5, "successThreshold": 1}


def _constraints(name: str, constraints: Iterable[Mapping[str, Any]]) -> list[Manifest]:
    ours = {"labelSelector": {"matchLabels": selector(name)}}
    return [{**ours, **constraint} for constraint in constraints]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _short_digest(secret: str) -> str:
    """Tells that a secret has changed, and too little to check a guess of it."""
    return _digest(secret)[:4]
