"""Reads everything that `decide` goes by, from memory: kopf's indices, the fleet, what was done.

What was written a moment ago is newer than what the watches have told; it is used until they catch
up, or for `TRUSTED_S` if they never do.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from octavo_operator.fleet import Fleet
from octavo_operator.objects import members, text
from octavo_operator.observed import KubernetesObject, ModelFacts, Observed, Recommendation
from octavo_operator.queue import Key
from octavo_operator.watches import GPU_MEMORY, Watches, served_names

TRUSTED_S = 10.0

ObjectId = tuple[str, str]  # kind, name


class WrittenObjects:
    """Objects of one ModelDeployment as the API server answered to our last writes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: dict[ObjectId, tuple[float, KubernetesObject]] = {}

    def note(self, written: KubernetesObject) -> None:
        self._written[_object_id(written)] = (self._clock(), written)

    def forget(self, kind: str, name: str) -> None:
        self._written.pop((kind, name), None)

    def newest(self, watched: KubernetesObject) -> KubernetesObject:
        """The written form of an object where the watched one is older."""
        self._expire()
        _, written = self._written.get(_object_id(watched), (0.0, watched))
        if written is watched or not _is_newer(written, watched):
            self._written.pop(_object_id(watched), None)
            return watched
        return written

    def unwatched(
        self, watched: Iterable[KubernetesObject], kinds: Iterable[str]
    ) -> list[KubernetesObject]:
        """Written objects of `kinds` that the watches have not told of yet."""
        self._expire()
        known = {_object_id(each) for each in watched}
        return [
            written
            for (kind, name), (_, written) in self._written.items()
            if kind in kinds and (kind, name) not in known
        ]

    @property
    def is_ahead(self) -> bool:
        """The watches have not caught up with all that was written."""
        self._expire()
        return bool(self._written)

    def _expire(self) -> None:
        oldest = self._clock() - TRUSTED_S
        for key in [key for key, (at, _) in self._written.items() if at < oldest]:
            del self._written[key]


@dataclass(slots=True)
class Memory:
    """What is remembered of one ModelDeployment between its turns; all of it may be lost.

    applied: for kind and name, (hash of the manifest, hash of the live object) of the last apply.
    secrets: for each name, (hash of the manifest, when it was last compared).
    """

    uid: str
    written: WrittenObjects = field(default_factory=WrittenObjects)
    applied: dict[ObjectId, tuple[str, str]] = field(default_factory=dict)
    secrets: dict[str, tuple[str, float]] = field(default_factory=dict)
    apply_errors: tuple[str, ...] = ()
    recommendations: Sequence[Recommendation] = ()


def gather(
    deployment: KubernetesObject,
    *,
    watches: Watches,
    fleet: Fleet,
    memory: Memory,
    served: frozenset[str],
    facts: ModelFacts | None,
    adapter_errors: Mapping[tuple[str, str], str],
    node_selector: Mapping[str, str],
) -> Observed:
    """node_selector: what the operator's own defaults say, under the deployment's."""
    key = Key(deployment["metadata"]["namespace"], deployment["metadata"]["name"])
    deployment = memory.written.newest(deployment)
    kinds = {kind for _, _, _, kind in watches.child_kinds}
    children = [memory.written.newest(each) for each in watches.children(key)]
    children += memory.written.unwatched(children, kinds)
    adapters = [memory.written.newest(each) for each in watches.adapters(key)]
    return Observed(
        now=datetime.now(UTC),
        deployment=deployment,
        children=[each for each in children if is_owned(each, deployment)],
        pods=watches.pods(key),
        adapters=adapters,
        replicas=fleet.replicas(key),
        is_fleet_known=fleet.is_known,
        owners_of_names=_owners(key, served_names(deployment), watches),
        owners_of_adapter_names=_owners(key, adapter_names(deployment, adapters), watches),
        facts=facts,
        gpu_memory_mib=gpu_memory_mib(deployment, watches.node_labels(), node_selector),
        served=served,
        recommendations=memory.recommendations,
        adapter_errors=adapter_errors,
        apply_errors=memory.apply_errors,
        download=fleet.download(key),
    )


def is_owned(child: KubernetesObject, owner: KubernetesObject) -> bool:
    """`child` was made for this very `owner`, and not for one of its name before."""
    references = child["metadata"].get("ownerReferences") or ()
    return any(each["uid"] == owner["metadata"]["uid"] for each in references)


def gpu_memory_mib(
    deployment: KubernetesObject,
    nodes: Sequence[Mapping[str, str]],
    node_selector: Mapping[str, str],
) -> int | None:
    """MiB of the largest GPU of those nodes that the deployment's pods may run on."""
    selector = dict(node_selector) | _node_selector(deployment)
    sizes = [
        int(labels[GPU_MEMORY])
        for labels in nodes
        if labels[GPU_MEMORY].isdecimal() and selector.items() <= labels.items()
    ]
    return max(sizes, default=None)


def _node_selector(deployment: KubernetesObject) -> dict[str, Any]:
    part: Any = deployment
    for name in ("spec", "podTemplate", "nodeSelector"):
        part = part.get(name) if isinstance(part, Mapping) else None
    return dict(part) if isinstance(part, Mapping) else {}


def adapter_names(
    deployment: KubernetesObject, adapters: Iterable[KubernetesObject]
) -> Iterable[str]:
    """What adapters of the deployment's spec, and its LoraAdapters, are to be served as."""
    for own in members(deployment, "spec", "adapters"):
        yield text(own, "name")
    for adapter in adapters:
        yield text(adapter, "spec", "servedName") or text(adapter, "metadata", "name")


def _owners(key: Key, names: Iterable[str], watches: Watches) -> dict[str, str]:
    """Of the names that other deployments serve their model by."""
    owners: dict[str, str] = {}
    for name in names:
        claims = watches.claims(name)
        if claims and claims[0][2] != key:
            owners[name] = str(claims[0][2])
    return owners


def _object_id(each: KubernetesObject) -> ObjectId:
    return each["kind"], each["metadata"]["name"]


def _is_newer(written: KubernetesObject, watched: KubernetesObject) -> bool:
    """Versions are compared as numbers, as Kubernetes' own caches do; others count as equal."""
    ours, theirs = written["metadata"], watched["metadata"]
    versions = str(ours.get("resourceVersion", "")), str(theirs.get("resourceVersion", ""))
    if ours.get("uid") != theirs.get("uid") or not all(each.isdecimal() for each in versions):
        return False
    return int(versions[0]) > int(versions[1])
