"""What replicas say of adapters: the statuses of LoraAdapters and the condition `AdaptersLoaded`.

An adapter counts as loaded where the replica's own record lists it, and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from octavo_operator.adapters import WantedAdapter, ready_records
from octavo_operator.conditions import Finding, joined, old_conditions
from octavo_operator.desired import Manifest
from octavo_operator.objects import KubernetesObject, name, number, text
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.replicas import Replica, shortened
from octavo_protocol.records import ReplicaRecord
from octavo_protocol.resources.base import FieldError
from octavo_protocol.resources.parse import parse_lora_adapter
from octavo_protocol.resources.status import (
    AdapterReplicaStatus,
    ConditionType,
    LoraAdapterStatus,
)

_MAX_REPLICAS_TOLD = 100
_MAX_NAMES_TOLD = 5


def finding(
    wanted: Sequence[WantedAdapter], replicas: Sequence[Replica], observed: Observed
) -> Finding | None:
    """Condition `AdaptersLoaded`; None without adapters."""
    if not wanted:
        return None
    if not ready_records(replicas):
        return Finding(
            ConditionType.ADAPTERS_LOADED, "Unknown", Reason.NO_REPLICA_READY, "no replica tells"
        )
    problems = [
        (each.problem[0], f"{each.name}: {each.problem[1]}")
        for each in wanted
        if each.problem is not None
    ]
    lacking = [
        (each.name, said)
        for each in wanted
        if each.problem is None
        for said in _lacking(each, _said(each, replicas, observed))
    ]
    if problems or lacking:
        reason = problems[0][0] if problems else Reason.LOADING
        if any(said.error for _, said in lacking):
            reason = Reason.LOAD_FAILED
        sentences = [f"{name} on {said.replica}: {said.message}" for name, said in lacking]
        told = _listed([*(told for _, told in problems), *sentences])
        return Finding(ConditionType.ADAPTERS_LOADED, "False", reason, told)
    count = len(ready_records(replicas))
    message = f"{len(wanted)} adapters are where they belong, on {count} ready replicas"
    return Finding(ConditionType.ADAPTERS_LOADED, "True", Reason.LOADED, message)


def _listed(sentences: Sequence[str]) -> str:
    more = len(sentences) - _MAX_NAMES_TOLD
    listed = "; ".join(sentences[:_MAX_NAMES_TOLD])
    return f"{listed}; and {more} more" if more > 0 else listed


@dataclass(frozen=True, slots=True)
class _Said:
    """One replica's word on an adapter. is_former: it serves it from another source than wanted.
    error: what it answered to the last attempt.
    """

    replica: str
    is_loaded: bool
    is_former: bool
    version: str | None
    error: str | None

    @property
    def is_current(self) -> bool:
        return self.is_loaded and not self.is_former

    @property
    def message(self) -> str:
        why = self.error or ("not replaced yet" if self.is_former else "not loaded yet")
        return f"serves the former source: {why}" if self.is_former else why


def _said(adapter: WantedAdapter, replicas: Sequence[Replica], observed: Observed) -> list[_Said]:
    """What each ready replica says of the adapter."""
    return [
        _Said(
            replica=record.replica_id,
            is_loaded=adapter.name in record.adapters,
            is_former=adapter.is_former_on(record),
            version=record.adapter_versions.get(adapter.name),
            error=_error(adapter, record, observed),
        )
        for record in ready_records(replicas)
    ]


def _error(adapter: WantedAdapter, record: ReplicaRecord, observed: Observed) -> str | None:
    """What it answered us, else what it tells of a load that a router asked for."""
    answered = observed.adapter_errors.get((record.replica_id, adapter.name))
    told = record.adapter_errors.get(adapter.name)
    if answered is None and told is not None and told.origin == adapter.origin:
        answered = told.message
    return None if answered is None else shortened(answered)


def _lacking(adapter: WantedAdapter, said: Sequence[_Said]) -> list[_Said]:
    """The replicas that are not as the adapter's policy wants them. On demand it need be nowhere,
    but where it is it must not be an older one, and it must not fail wherever it was tried.
    """
    is_anywhere = any(each.is_current for each in said)
    return [
        each
        for each in said
        if not each.is_current
        and (adapter.is_everywhere or each.is_former or (each.error and not is_anywhere))
    ]


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
            said = _said(adapter, replicas, observed)
            found[name(resource)] = _status(resource, _ready(adapter, said), said, observed.now)
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


def _ready(adapter: WantedAdapter, said: Sequence[_Said]) -> Finding:
    if adapter.problem is not None:
        return Finding(ConditionType.READY, "False", *adapter.problem)
    if not said:
        return Finding(ConditionType.READY, "False", Reason.NO_REPLICA_READY, "no replica is ready")
    where = f"loaded on {sum(each.is_loaded for each in said)} of {len(said)} ready replicas"
    if num_former := sum(each.is_former for each in said):
        where += f", on {num_former} of them from the former source"
    lacking = _lacking(adapter, said)
    if failed := [each for each in lacking if each.error]:
        told = f"{where}; {failed[0].replica}: {failed[0].error}"
        return Finding(ConditionType.READY, "False", Reason.LOAD_FAILED, told)
    if lacking:
        return Finding(ConditionType.READY, "False", Reason.LOADING, where)
    return Finding(ConditionType.READY, "True", Reason.LOADED, where)


def _invalid(errors: Sequence[FieldError]) -> Finding:
    return Finding(ConditionType.READY, "False", Reason.INVALID, _listed([str(e) for e in errors]))


def _status(
    resource: KubernetesObject,
    ready: Finding,
    said: Sequence[_Said],
    now: datetime,
) -> dict[str, Any]:
    generation = number(resource, "metadata", "generation")
    status = LoraAdapterStatus(
        observed_generation=generation,
        loaded_replicas=sum(each.is_loaded for each in said),
        updated_replicas=sum(each.is_current for each in said),
        replicas=[_replica_status(each) for each in said[:_MAX_REPLICAS_TOLD]],
        conditions=joined([ready], old_conditions(resource), generation, now),
    )
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _replica_status(said: _Said) -> AdapterReplicaStatus:
    is_silent = said.is_current or not (said.error or said.is_former)
    return AdapterReplicaStatus(
        name=said.replica,
        loaded=said.is_loaded,
        version=said.version,
        message=None if is_silent else said.message,
    )
