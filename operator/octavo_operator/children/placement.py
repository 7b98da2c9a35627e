"""On which nodes pods can and should run, before their owner's pod template is laid over that."""

from typing import Any

from octavo_operator.desired import Manifest
from octavo_operator.names import DEPLOYMENT, selector
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.pod_spec import PodTemplateSpec

_NODE = "kubernetes.io/hostname"


def of_replicas(deployment: ModelDeployment) -> PodTemplateSpec:
    """Replicas prefer different nodes, unless their claim is for one."""
    if _is_on_one_node(deployment):
        affinity = _together(deployment)
    else:
        preferred = [{"weight": 100, "podAffinityTerm": _near(selector(deployment.metadata.name))}]
        affinity = {
            "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}
        }
    return PodTemplateSpec(affinity=affinity, tolerations=_tolerations(deployment))


def of_downloads(deployment: ModelDeployment) -> PodTemplateSpec:
    """A claim may be bound to where its first pod runs, so a download runs where replicas can."""
    affinity = _together(deployment) if _is_on_one_node(deployment) else None
    return PodTemplateSpec(affinity=affinity, tolerations=_tolerations(deployment))


def _is_on_one_node(deployment: ModelDeployment) -> bool:
    claim = deployment.spec.cache.claim
    return claim is not None and claim.access_mode == "ReadWriteOnce"


def _together(deployment: ModelDeployment) -> Manifest:
    """Replicas and downloads on one node; the first of them on any."""
    near = _near({DEPLOYMENT: deployment.metadata.name})
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [near]}}


def _near(labels: dict[str, str]) -> Manifest:
    return {"topologyKey": _NODE, "labelSelector": {"matchLabels": labels}}


def _tolerations(deployment: ModelDeployment) -> list[dict[str, Any]]:
    """The taint that keeps other pods off nodes with GPUs."""
    name = deployment.spec.resources.gpu.resource_name
    taint = {"key": name, "operator": "Exists", "effect": "NoSchedule"}
    return [taint] if deployment.spec.num_gpus else []
