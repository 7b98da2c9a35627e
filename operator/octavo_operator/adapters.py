"""Which adapters belong where, what replicas are asked for that, and what each of them says.

Adapters come from `spec.adapters` and from LoraAdapters. An adapter counts as loaded where the
replica's own record lists it, and nowhere else. Neither adding nor removing one touches a pod:
only room for adapters (`spec.lora`) is part of the pods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from octavo_operator.children.replica import lora_room, secrets
from octavo_operator.conditions import Finding, joined, old_conditions
from octavo_operator.desired import AdapterAction, Manifest
from octavo_operator.objects import KubernetesObject, name, number, text
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.replicas import Replica, Stage, shortened
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.resources.base import FieldError
from octavo_protocol.resources.lora_adapter import LoraAdapter, LoraAdapterSpec
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.model_source import ModelSource
from octavo_protocol.resources.parse import parse_lora_adapter
from octavo_protocol.resources.status import (
    AdapterReplicaStatus,
    ConditionType,
    LoraAdapterStatus,
)

_MAX_REPLICAS_TOLD = 100
_MAX_NAMES_TOLD = 5


@dataclass(frozen=True, slots=True)
class WantedAdapter:
    """resource: the LoraAdapter that asks for it; None: the deployment's own spec.

    problem: reason and message where it cannot be loaded at all.
    """

    name: str
    source: ModelSource
    is_everywhere: bool
    resource: KubernetesObject | None = None
    problem: tuple[Reason, str] | None = None


def wanted_adapters(deployment: ModelDeployment, observed: Observed) -> list[WantedAdapter]:
    """All that ask to be served beside `deployment`: its own first, then the older first."""
    asked = [WantedAdapter(each.name, each.model, True) for each in deployment.spec.adapters]
    for resource in sorted(observed.adapters, key=_age):
        adapter = parse_lora_adapter(resource)
        if isinstance(adapter, LoraAdapter):
            asked.append(_from_resource(adapter, resource, deployment))
    return list(_without_doubles(deployment, asked, observed.owners_of_adapter_names))


def _from_resource(
    adapter: LoraAdapter, resource: KubernetesObject, deployment: ModelDeployment
) -> WantedAdapter:
    spec = adapter.spec
    return WantedAdapter(
        spec.served_name or adapter.metadata.name,
        spec.model,
        spec.load_policy == "EveryReplica",
        resource,
        _problem(spec, deployment),
    )


def _problem(spec: LoraAdapterSpec, deployment: ModelDeployment) -> tuple[Reason, str] | None:
    """What keeps a LoraAdapter from any replica of its deployment."""
    target, secret = spec.target.name, spec.model.secret_ref
    if lora_room(deployment) is None:
        told = f"ModelDeployment {target} has no room for adapters; give it spec.lora"
        return Reason.NO_ROOM, told
    if secret is not None and secret.name not in secrets(deployment):
        # Pods take their environment when they start, and no adapter is to restart them.
        told = (
            f"the replicas of ModelDeployment {target} do not have the Secret {secret.name}; name "
            "it there too, as secretRef of the model or of an adapter of the spec, or give its "
            "keys in podTemplate.env and leave secretRef out here"
        )
        return Reason.SECRET_MISSING, told
    return None


def _without_doubles(
    deployment: ModelDeployment, asked: Iterable[WantedAdapter], owners: Mapping[str, str]
) -> Iterable[WantedAdapter]:
    """The first of a name keeps it; the others have a problem. owners: deployments by name."""
    taken = {each: f"ModelDeployment {owner}" for each, owner in owners.items()}
    taken |= dict.fromkeys(deployment.spec.served_names, "the model itself")
    for each in asked:
        owner = taken.get(each.name)
        if owner is None:
            taken[each.name] = "another adapter" if each.resource is None else name(each.resource)
            yield each
        else:
            told = f"the name {each.name} belongs to {owner}; give another servedName"
            yield WantedAdapter(
                each.name, each.source, each.is_everywhere, each.resource, (Reason.NAME_TAKEN, told)
            )


def _age(resource: KubernetesObject) -> tuple[str, str]:
    return text(resource, "metadata", "creationTimestamp"), name(resource)


def actions(
    wanted: Sequence[WantedAdapter], replicas: Sequence[Replica]
) -> tuple[AdapterAction, ...]:
    """What the ready replicas must load and unload."""
    usable = {each.name: each for each in wanted if each.problem is None}
    found = []
    for record in _records(replicas):
        url, replica_id = record.url, record.replica_id
        found += [
            AdapterAction(replica_id, url, each.name, each.source)
            for each in usable.values()
            if each.is_everywhere and each.name not in record.adapters
        ]
        found += [
            AdapterAction(replica_id, url, adapter, None)
            for adapter in record.adapters
            if adapter not in usable
        ]
    return tuple(found)


def _records(replicas: Iterable[Replica]) -> list[ReplicaRecord]:
    """Records of the replicas that take traffic."""
    return [r.record for r in replicas if r.stage is Stage.READY and r.record is not None]


def finding(
    wanted: Sequence[WantedAdapter], replicas: Sequence[Replica], observed: Observed
) -> Finding | None:
    """Condition `AdaptersLoaded`; None without adapters."""
    if not wanted:
        return None
    if not _records(replicas):
        return Finding(
            ConditionType.ADAPTERS_LOADED, "Unknown", Reason.NO_REPLICA_READY, "no replica tells"
        )
    problems = [
        (each.problem[0], f"{each.name}: {each.problem[1]}")
        for each in wanted
        if each.problem is not None
    ]
    missing = [
        f"{each.name} on {replica.name}: {replica.message or 'not loaded yet'}"
        for each in wanted
        if each.is_everywhere and each.problem is None
        for replica in _told(each, replicas, observed)
        if not replica.loaded
    ]
    if problems or missing:
        reason = problems[0][0] if problems else Reason.LOADING
        if any(key[1] == each.name for key in observed.adapter_errors for each in wanted):
            reason = Reason.LOAD_FAILED
        return Finding(
            ConditionType.ADAPTERS_LOADED,
            "False",
            reason,
            _listed([*(told for _, told in problems), *missing]),
        )
    count = len(_records(replicas))
    message = f"{len(wanted)} adapters are where they belong, on {count} ready replicas"
    return Finding(ConditionType.ADAPTERS_LOADED, "True", Reason.LOADED, message)


def _listed(sentences: Sequence[str]) -> str:
    more = len(sentences) - _MAX_NAMES_TOLD
    listed = "; ".join(sentences[:_MAX_NAMES_TOLD])
    return f"{listed}; and {more} more" if more > 0 else listed


def _told(
    adapter: WantedAdapter, replicas: Sequence[Replica], observed: Observed
) -> list[AdapterReplicaStatus]:
    """What each ready replica says of the adapter."""
    told = []
    for record in _records(replicas):
        loaded = adapter.name in record.adapters
        error = observed.adapter_errors.get((record.replica_id, adapter.name))
        message = None if loaded or error is None else shortened(error)
        told.append(AdapterReplicaStatus(name=record.replica_id, loaded=loaded, message=message))
    return told


def statuses(
    wanted: Sequence[WantedAdapter], replicas: Sequence[Replica], observed: Observed
) -> dict[str, Manifest]:
    """The status of each LoraAdapter, by its name; none while Redis does not tell."""
    if not observed.is_fleet_known:
        return {}
    by_resource = {name(each.resource): each for each in wanted if each.resource is not None}
    found = {}
    for resource in observed.adapters:
        if (adapter := by_resource.get(name(resource))) is not None:
            told = _told(adapter, replicas, observed)
            found[name(resource)] = _status(resource, _ready(adapter, told), told, observed.now)
        elif isinstance(errors := parse_lora_adapter(resource), list):
            found[name(resource)] = _status(resource, _invalid(errors), [], observed.now)
    return found


def status_without_target(resource: KubernetesObject, now: datetime) -> Manifest:
    """The status of a LoraAdapter whose ModelDeployment does not exist."""
    target = text(resource, "spec", "target", "name")
    place = text(resource, "metadata", "namespace")
    told = f"there is no ModelDeployment {target} in namespace {place}"
    finding = Finding(ConditionType.READY, "False", Reason.TARGET_MISSING, told)
    return _status(resource, finding, [], now)


def _ready(adapter: WantedAdapter, told: Sequence[AdapterReplicaStatus]) -> Finding:
    loaded = sum(each.loaded for each in told)
    failed = [each for each in told if each.message is not None]
    where = f"loaded on {loaded} of {len(told)} ready replicas"
    if adapter.problem is not None:
        return Finding(ConditionType.READY, "False", *adapter.problem)
    if failed and adapter.is_everywhere:
        told_why = f"{where}; {failed[0].name}: {failed[0].message}"
        return Finding(ConditionType.READY, "False", Reason.LOAD_FAILED, told_why)
    if not told:
        return Finding(ConditionType.READY, "False", Reason.NO_REPLICA_READY, "no replica is ready")
    if loaded < len(told) and adapter.is_everywhere:
        return Finding(ConditionType.READY, "False", Reason.LOADING, where)
    return Finding(ConditionType.READY, "True", Reason.LOADED, where)


def _invalid(errors: Sequence[FieldError]) -> Finding:
    return Finding(ConditionType.READY, "False", Reason.INVALID, _listed([str(e) for e in errors]))


def _status(
    resource: KubernetesObject,
    ready: Finding,
    told: Sequence[AdapterReplicaStatus],
    now: datetime,
) -> dict[str, Any]:
    generation = number(resource, "metadata", "generation")
    status = LoraAdapterStatus(
        observed_generation=generation,
        loaded_replicas=sum(each.loaded for each in told),
        replicas=list(told[:_MAX_REPLICAS_TOLD]),
        conditions=joined([ready], old_conditions(resource), generation, now),
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
