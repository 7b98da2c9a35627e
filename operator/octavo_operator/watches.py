"""What kopf watches for us: in-memory copies of everything that concerns ModelDeployments.

kopf lists and watches each kind and keeps the indices below; here every change only names the
ModelDeployments that it concerns. Nothing is written: no handler here stores annotations or adds
finalizers. No event is passed on before every index is complete.

Children and pods are watched by label, so that a cluster's other pods cost nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf

from octavo_operator.cluster import login
from octavo_operator.metrics import OperatorMetrics
from octavo_operator.names import DEPLOYMENT, MANAGED_BY, MANAGED_BY_VALUE
from octavo_operator.observed import KubernetesObject
from octavo_operator.queue import Key
from octavo_operator.references import References, Target
from octavo_operator.relisting import Relisting
from octavo_protocol.resources.metadata import GROUP, VERSION

MODEL_DEPLOYMENTS = "modeldeployments"
LORA_ADAPTERS = "loraadapters"

# (group, version, plural, kind) of children. Secrets are not watched: nobody may list them.
CHILD_KINDS = (
    ("apps", "v1", "deployments", "Deployment"),
    ("batch", "v1", "jobs", "Job"),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("policy", "v1beta1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    ("", "v1", "pods", "Pod"),
    ("", "v1", "serviceaccounts", "ServiceAccount"),
    ("", "v1", "services", "Service"),
)
# Of gpu-feature-discovery: MiB of each GPU of a node.
GPU_MEMORY = "nvidia.com/gpu.memory"
_INDICES = ("deployments", "claims", "adapters", "children", "pods", "nodes")
# About ten minutes of an API server that is away; then the process ends and is started again.
_ERROR_BACKOFFS = (0.5, 1, 2, 4, 8, *[15] * 40)
_WATCH_S = 600


def api_version(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


class Watches:
    """The indices. Complete once kopf runs; empty before."""

    def __init__(
        self,
        *,
        changed: Callable[[Key], None],
        metrics: OperatorMetrics,
        served: frozenset[str],
        with_nodes: bool,
    ) -> None:
        self._changed = changed
        self._metrics = metrics
        self.child_kinds = served_children(served)
        self.registry = kopf.OperatorRegistry()
        self.settings = _settings()
        self.relisting = Relisting()
        self._names: References[str] = References()
        self._targets: References[Key] = References()
        self._indices: Mapping[str, Any] = {}
        kopf.on.startup(registry=self.registry)(self._started)
        kopf.on.login(registry=self.registry)(login)
        self._watch_resources()
        self._watch_children()
        if with_nodes:
            kopf.index("", "v1", "nodes", id="nodes", registry=self.registry)(_index_node)

    def deployment(self, key: Key) -> KubernetesObject | None:
        return next(iter(self._stored("deployments", key)), None)

    def deployment_keys(self) -> list[Key]:
        """Every ModelDeployment that there is."""
        return list(self._indices.get("deployments", ()))

    def children(self, key: Key) -> list[KubernetesObject]:
        """Everything but pods that has the deployment's label."""
        return list(self._stored("children", key))

    def pods(self, key: Key) -> list[KubernetesObject]:
        return list(self._stored("pods", key))

    def adapters(self, key: Key) -> list[KubernetesObject]:
        """LoraAdapters that target the deployment."""
        return list(self._stored("adapters", key))

    def claims(self, name: str) -> list[tuple[str, str, Key]]:
        """(creation time, key as text, key) of every deployment that wants `name`, oldest first."""
        return sorted(self._stored("claims", name))

    def node_labels(self) -> list[Mapping[str, str]]:
        names = list(self._indices.get("nodes", ()))
        return [labels for name in names for labels in self._stored("nodes", name)]

    def _stored(self, index: str, key: object) -> Iterable[Any]:
        return stored(self._indices, index, key)

    def _started(self, **arguments: Any) -> None:
        """kopf passes its indices to every handler by their names."""
        self._indices = {name: arguments[name] for name in _INDICES if name in arguments}

    def _watch_resources(self) -> None:
        registry = self.registry
        what = (GROUP, VERSION, MODEL_DEPLOYMENTS)
        kopf.index(*what, id="deployments", registry=registry)(index_by(own_key))
        kopf.index(*what, id="claims", registry=registry)(_index_claims)
        kopf.on.event(*what, id="deployment-changed", registry=registry)(self._deployment_changed)
        adapters = (GROUP, VERSION, LORA_ADAPTERS)
        kopf.index(*adapters, id="adapters", registry=registry)(index_by(_target_key))
        kopf.on.event(*adapters, id="adapter-changed", registry=registry)(self._adapter_changed)

    def _watch_children(self) -> None:
        for group, version, plural, kind in self.child_kinds:
            child = (group, version, plural)
            index = "pods" if kind == "Pod" else "children"
            self.settings.watching.label_selectors[child] = f"{MANAGED_BY}={MANAGED_BY_VALUE}"
            kopf.index(*child, id=index, registry=self.registry)(index_by(_deployment_key))
            kopf.on.event(*child, id=f"{plural}-changed", registry=self.registry)(
                self._notes(plural, _deployment_key)
            )

    def _deployment_changed(self, body: KubernetesObject, **event: Any) -> None:
        """Others that want one of its names may have it now, or no longer."""
        self.note(MODEL_DEPLOYMENTS, body, event)
        key = own_key(body)
        self._changed(key)
        for name in _concerned(self._names, body, event, served_names(body)):
            for claim in self.claims(name):
                self._changed(claim[2])

    def _adapter_changed(self, body: KubernetesObject, **event: Any) -> None:
        """The deployment that it was for until now is to unload it."""
        self.note(LORA_ADAPTERS, body, event)
        target = _target_key(body)
        for key in _concerned(self._targets, body, event, [] if target is None else [target]):
            self._changed(key)

    def _notes(
        self, plural: str, key_of: Callable[[KubernetesObject], Key | None]
    ) -> Callable[..., None]:
        def changed(body: KubernetesObject, **event: Any) -> None:
            self.note(plural, body, event)
            if (key := key_of(body)) is not None:
                self._changed(key)

        return changed

    def note(self, plural: str, body: KubernetesObject, event: Mapping[str, Any]) -> None:
        """To be called once for every event of a kind."""
        self._metrics.watch_events.labels(plural).inc()
        self.relisting.note(event["type"], body)


def stored(indices: Mapping[str, Any], index: str, key: object) -> Iterable[Any]:
    """What an index of kopf's has for a key."""
    found = indices.get(index, {})
    return found[key] if key in found else ()  # noqa: SIM401  # kopf's index has no get


def served_children(served: frozenset[str]) -> list[tuple[str, str, str, str]]:
    """Those of `CHILD_KINDS` that the API server has, each kind in its newest version."""
    found: dict[str, tuple[str, str, str, str]] = {}
    for each in CHILD_KINDS:
        group, version, _, kind = each
        if f"{api_version(group, version)}/{kind}" in served:
            found.setdefault(kind, each)
    return list(found.values())


def served_names(body: KubernetesObject) -> list[str]:
    """Model names that a ModelDeployment asks for, also one whose spec is not valid."""
    spec = body.get("spec")
    names = spec.get("servedNames") if isinstance(spec, Mapping) else None
    valid = [each for each in names if isinstance(each, str)] if isinstance(names, list) else []
    return valid or [body["metadata"]["name"]]


def _concerned(
    references: References[Target],
    body: KubernetesObject,
    event: Mapping[str, Any],
    now: Iterable[Target],
) -> Iterable[Target]:
    is_gone = event["type"] == "DELETED"
    return references.concerned(body["metadata"]["uid"], now, is_gone=is_gone)


def own_key(body: KubernetesObject) -> Key:
    """A resource's own name."""
    return Key(body["metadata"]["namespace"], body["metadata"]["name"])


def _deployment_key(body: KubernetesObject) -> Key | None:
    return label_key(body, DEPLOYMENT)


def label_key(body: KubernetesObject, label: str) -> Key | None:
    """The owner that a child's label names."""
    metadata = body["metadata"]
    name = (metadata.get("labels") or {}).get(label)
    return None if name is None else Key(metadata["namespace"], name)


def _target_key(body: KubernetesObject) -> Key | None:
    spec = body.get("spec")
    target = spec.get("target") if isinstance(spec, Mapping) else None
    name = target.get("name") if isinstance(target, Mapping) else None
    return Key(body["metadata"]["namespace"], name) if isinstance(name, str) else None


def index_by(
    key_of: Callable[[KubernetesObject], Key | None],
) -> Callable[..., dict[Key, KubernetesObject] | None]:
    """A handler of kopf that keeps objects by a key; those without one are not kept."""

    def index(body: KubernetesObject, **_: Any) -> dict[Key, KubernetesObject] | None:
        key = key_of(body)
        return None if key is None else {key: _kept(body)}

    return index


def _index_claims(body: KubernetesObject, **_: Any) -> dict[str, tuple[str, str, Key]]:
    metadata = body["metadata"]
    # Of two that are equally old, routers and operator must mean the same one.
    claim = (metadata["creationTimestamp"], str(own_key(body)), own_key(body))
    return dict.fromkeys(served_names(body), claim)


def _index_node(body: KubernetesObject, **_: Any) -> dict[str, dict[str, str]] | None:
    """Labels of nodes that have GPUs."""
    labels = body["metadata"].get("labels") or {}
    return {body["metadata"]["name"]: dict(labels)} if GPU_MEMORY in labels else None


def _kept(body: KubernetesObject) -> dict[str, Any]:
    """An object without its managed fields: a third of its size, and nobody reads them."""
    metadata = {name: each for name, each in body["metadata"].items() if name != "managedFields"}
    return {**body, "metadata": metadata}


def _settings() -> Any:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True  # a lease elects the leader
    settings.posting.enabled = False
    settings.scanning.disabled = True  # definitions and namespaces are not watched: fewer rights
    settings.queueing.exit_timeout = 0.5
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 60
    settings.networking.error_backoffs = _ERROR_BACKOFFS
    settings.watching.server_timeout = _WATCH_S
    settings.watching.client_timeout = _WATCH_S + 30
    settings.watching.reconnect_backoff = 1.0
    return settings
