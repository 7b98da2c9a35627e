"""A pod of ours: one hardened container, with what the pod template lays over it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_operator.children.pod_template import by_key
from octavo_operator.desired import Manifest
from octavo_protocol.resources.pod_spec import PodTemplateSpec

# The user of the images; it owns /cache there.
_USER = 65532
CACHE_PATH = "/cache"
MODELS_PATH = "/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The one container of a pod. secrets: names of Secrets whose keys become its environment."""

    name: str
    image: str
    image_pull_policy: str
    args: tuple[str, ...]
    env: tuple[Mapping[str, Any], ...] = ()
    secrets: tuple[str, ...] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume and where the container sees it. source: of the volume, as in a pod."""

    name: str
    path: str
    source: Mapping[str, Any]
    read_only: bool = False


EMPTY: Mapping[str, Any] = {"emptyDir": {}}
TMP = Mount("tmp", "/tmp", EMPTY)


def claim_mount(
    claim: str, *, read_only: bool, name: str = "models", path: str = MODELS_PATH
) -> Mount:
    """A PersistentVolumeClaim; by default one that holds models."""
    source = {"claimName": claim} | ({"readOnly": True} if read_only else {})
    return Mount(name, path, {"persistentVolumeClaim": source}, read_only)


def literal(value: str) -> str:
    """`value` as an argument in which Kubernetes expands nothing."""
    return value.replace("$", "$$")


def pod_spec(
    container: Container, mounts: tuple[Mount, ...], overlay: PodTemplateSpec, account: str
) -> Manifest:
    """Non-root, read-only root, no capabilities, no token of the API server."""
    spec: Manifest = {
        "serviceAccountName": overlay.service_account_name or account,
        "automountServiceAccountToken": False,
        # A Service named `octavo` would set OCTAVO_PORT, which is a flag of ours.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
            **overlay.security_context,
        },
        "containers": [_container(container, mounts, overlay)],
        "volumes": by_key(
            "name", ({"name": each.name, **each.source} for each in mounts), overlay.volumes
        ),
    }
    optional = {
        "affinity": overlay.affinity,
        "nodeSelector": overlay.node_selector,
        "tolerations": overlay.tolerations,
        "imagePullSecrets": overlay.image_pull_secrets,
        "priorityClassName": overlay.priority_class_name,
        "schedulerName": overlay.scheduler_name,
    }
    return spec | {name: value for name, value in optional.items() if value}


def _container(
    container: Container, mounts: tuple[Mount, ...], overlay: PodTemplateSpec
) -> Manifest:
    made: Manifest = {
        "name": container.name,
        "image": container.image,
        "imagePullPolicy": container.image_pull_policy,
        "args": list(container.args),
        "env": by_key("name", container.env, overlay.env),
        "resources": dict(container.resources),
        "volumeMounts": by_key("mountPath", map(_volume_mount, mounts), overlay.volume_mounts),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **container.more,
    }
    if container.secrets:
        made["envFrom"] = [{"secretRef": {"name": name}} for name in container.secrets]
    return {name: value for name, value in made.items() if value not in ([], {})}


def _volume_mount(mount: Mount) -> Manifest:
    made: Manifest = {"name": mount.name, "mountPath": mount.path}
    return made | ({"readOnly": True} if mount.read_only else {})
