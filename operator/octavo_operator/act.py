"""Does what was decided: children, registration, adapters, status, events; writes only differences.

What the API server refuses (a quota, a part of the pod template that is not valid, a name that
somebody else has) does not stop the rest. It is remembered, and the next decision puts the server's
own words into the status.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.adapters_client import AdaptersClient
from octavo_operator.apply import (
    APPLIED_HASH,
    digest,
    essence,
    is_of_former,
    needs_apply,
    prepared,
)
from octavo_operator.cluster import ApiError, Cluster, object_path, path_of
from octavo_operator.desired import Desired, Manifest
from octavo_operator.events import Events
from octavo_operator.fleet import Fleet
from octavo_operator.gather import Memory, is_owned
from octavo_operator.names import DELETION_COST
from octavo_operator.observed import KubernetesObject, Observed
from octavo_operator.queue import Key

# A Secret cannot be watched without the right to read all of them; it is compared so often instead.
SECRET_CHECK_S = 3600.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """refused: what the API server refused, a sentence each. waits_for_former: a child of a former
    ModelDeployment of this name is still being removed.
    """

    refused: tuple[str, ...]
    waits_for_former: bool


class Actor:
    """Writes for any ModelDeployment, one at a time each. Raises `ApiUnreachableError`."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        fleet: Fleet,
        adapters: AdaptersClient,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._fleet = fleet
        self._adapters = adapters
        self._events = events
        self._clock = clock

    async def act(self, observed: Observed, desired: Desired, memory: Memory) -> Outcome:
        """What there is afterwards is as desired, but for what the outcome says."""
        turn = _Turn(self._cluster, observed, memory, self._clock)
        for pod, cost in desired.deletion_costs.items():
            await turn.set_deletion_cost(pod, cost)
        for manifest in desired.children or ():
            await turn.ensure(prepared(manifest, observed.deployment))
        for each in desired.removed:
            await turn.remove(each.kind, each.name)
        await self._register(observed, desired)
        self._adapters.ask(_key(observed), desired.adapter_actions)
        await turn.set_status(observed.deployment, desired.status)
        for adapter in observed.adapters:
            if (status := desired.adapter_statuses.get(adapter["metadata"]["name"])) is not None:
                await turn.set_status(adapter, status)
        for event in desired.events:
            await self._events.post(observed.deployment, event)
        memory.recommendations = desired.recommendations
        return Outcome(tuple(turn.refused), turn.waits_for_former)

    async def tell(self, resource: KubernetesObject, status: Manifest) -> KubernetesObject | None:
        """The status of a resource outside the turn of a deployment; the answer, where something
        was to be written. Raises `ApiError`.
        """
        if _pruned(resource.get("status") or {}) == _pruned(status):
            return None
        return await self._cluster.apply(_with_status(resource, status), "status")

    async def _register(self, observed: Observed, desired: Desired) -> None:
        """A deployment whose children are left as they are keeps what the routers know of it."""
        is_leaving = "deletionTimestamp" in observed.deployment["metadata"]
        if desired.registration is not None:
            await self._fleet.register(_key(observed), desired.registration)
        elif desired.children is not None or is_leaving:
            await self._fleet.unregister(_key(observed))


class _Turn:
    """The writes of one turn; `refused` and `waits_for_former` as in its `Outcome`."""

    def __init__(
        self, cluster: Cluster, observed: Observed, memory: Memory, clock: Callable[[], float]
    ) -> None:
        self._cluster = cluster
        self._observed = observed
        self._memory = memory
        self._clock = clock
        self.refused: list[str] = []
        self.waits_for_former = False

    async def ensure(self, manifest: Manifest) -> None:
        """The child is as `manifest` says. manifest: a prepared one."""
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Secret" and self._is_fresh(manifest):
            return
        live = self._observed.child(kind, name)
        try:
            if live is None:
                live = await self._find(manifest)
            if live is not None and not is_owned(live, self._observed.deployment):
                self._leave(kind, name, live)
                return
            if live is None or needs_apply(manifest, live, self._memory.applied.get((kind, name))):
                live = await self._apply(manifest)
        except ApiError as error:
            self._refuse(kind, name, error)
            return
        if kind == "Secret":
            wanted = manifest["metadata"]["annotations"][APPLIED_HASH]
            self._memory.secrets[name] = (wanted, self._clock())

    async def remove(self, kind: str, name: str) -> None:
        if (live := self._observed.child(kind, name)) is None:
            return
        self._memory.written.forget(kind, name)
        if "deletionTimestamp" in live["metadata"]:
            return
        try:
            await self._cluster.delete(path_of(live), live["metadata"]["uid"])
        except ApiError as error:
            self._refuse(kind, name, error)

    async def set_deletion_cost(self, pod: str, cost: int) -> None:
        namespace = self._observed.deployment["metadata"]["namespace"]
        patch = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
        try:
            await self._cluster.merge(object_path("v1", "Pod", namespace, pod), patch)
        except ApiError as error:
            if error.status != 404:
                self._refuse("Pod", pod, error)

    async def set_status(self, resource: KubernetesObject, status: Manifest) -> None:
        kind, metadata = resource["kind"], resource["metadata"]
        object_id = (f"{kind}/status", metadata["name"])
        live = resource.get("status") or {}
        if _pruned(live) == _pruned(status):
            return
        if self._memory.applied.get(object_id) == (digest(status), digest(live)):
            return  # the server says the same in other words
        try:
            answer = await self._cluster.apply(_with_status(resource, status), "status")
        except ApiError as error:
            if error.status not in (404, 409):  # it is gone, or another one of its name is there
                self._refuse(kind, metadata["name"], error)
            return
        self._memory.written.note(answer)
        self._memory.applied[object_id] = (digest(status), digest(answer.get("status") or {}))

    def _is_fresh(self, manifest: Manifest) -> bool:
        wanted = manifest["metadata"]["annotations"][APPLIED_HASH]
        found, at = self._memory.secrets.get(manifest["metadata"]["name"], ("", 0.0))
        return found == wanted and self._clock() - at < SECRET_CHECK_S

    def _leave(self, kind: str, name: str, live: KubernetesObject) -> None:
        """Somebody else's object has a child's name: applying would take it over."""
        deployment = self._observed.deployment
        if is_of_former(live, deployment):
            self.waits_for_former = True
            return
        self.refused.append(
            f"{kind} {name}: one of that name exists and does not belong to this ModelDeployment; "
            "delete it, or give the ModelDeployment another name"
        )

    async def _find(self, manifest: Manifest) -> KubernetesObject | None:
        """What is there though no watch told of it. Secrets are found without reading them."""
        path = path_of(manifest)
        if manifest["kind"] != "Secret":
            return await self._cluster.find(path)
        try:
            return await self._cluster.merge(path, {}, dry_run=True)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _apply(self, manifest: Manifest) -> KubernetesObject:
        live = await self._cluster.apply(manifest)
        object_id = manifest["kind"], manifest["metadata"]["name"]
        wanted = manifest["metadata"]["annotations"][APPLIED_HASH]
        self._memory.applied[object_id] = (wanted, essence(live))
        if manifest["kind"] != "Secret":
            self._memory.written.note(live)
        return live

    def _refuse(self, kind: str, name: str, error: ApiError) -> None:
        self.refused.append(f"{kind} {name}: {error.message}")


def _with_status(resource: KubernetesObject, status: Manifest) -> Manifest:
    """What is applied to the status of this very object."""
    identity = {name: resource["metadata"][name] for name in ("name", "namespace", "uid")}
    kind = {name: resource[name] for name in ("apiVersion", "kind")}
    return {**kind, "metadata": identity, "status": status}


def _key(observed: Observed) -> Key:
    metadata = observed.deployment["metadata"]
    return Key(metadata["namespace"], metadata["name"])


def _pruned(value: Any) -> Any:
    """Without what is null or empty: the API server keeps some of it and drops some."""
    if isinstance(value, Mapping):
        pruned = {name: _pruned(each) for name, each in value.items()}
        return {name: each for name, each in pruned.items() if each not in (None, {}, [])}
    if isinstance(value, list | tuple):
        return [_pruned(each) for each in value]
    return value
