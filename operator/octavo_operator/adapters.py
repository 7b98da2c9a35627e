"""Which adapters belong where, and what replicas and routers are asked and told for that.

Adapters come from `spec.adapters` and from LoraAdapters. Those that belong on every replica are
loaded by us; routers are told of all, and have replicas load those that are on demand. One whose
source has changed is replaced in place wherever it is. Neither adding nor removing one touches a
pod: only room for adapters (`spec.lora`) is part of the pods.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from octavo_operator.children.replica import lora_room, secrets
from octavo_operator.desired import AdapterAction
from octavo_operator.objects import KubernetesObject, name, text
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.replicas import Replica, Stage
from octavo_protocol.records import AdapterSource, ReplicaRecord, adapter_origin
from octavo_protocol.resources.lora_adapter import LoraAdapter, LoraAdapterSpec
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.model_source import ModelSource
from octavo_protocol.resources.parse import parse_lora_adapter


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

    @property
    def origin(self) -> str:
        """As of `AdapterSource.origin`."""
        return adapter_origin(self.source.source, self.source.revision)

    def is_former_on(self, record: ReplicaRecord) -> bool:
        """Whether the replica serves it from another source, or of another revision."""
        return record.adapter_sources.get(self.name) not in (None, self.origin)


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
    wanted: Sequence[WantedAdapter], replicas: Sequence[Replica], observed: Observed
) -> tuple[AdapterAction, ...]:
    """What the ready replicas must load, replace and unload."""
    invalid = set(_invalid_names(observed))
    usable = {each.name: each for each in wanted if each.problem is None}
    found = []
    for record in ready_records(replicas):
        url, replica_id = record.url, record.replica_id
        found += [
            AdapterAction(replica_id, url, each.name, each.source)
            for each in usable.values()
            if each.is_everywhere and each.name not in record.adapters
        ]
        found += [
            AdapterAction(replica_id, url, each.name, each.source, in_place=True)
            for each in usable.values()
            if each.is_former_on(record)
        ]
        found += [
            AdapterAction(replica_id, url, adapter, None)
            for adapter in record.adapters
            if adapter not in usable and adapter not in invalid
        ]
    return tuple(found)


def _invalid_names(observed: Observed) -> Iterable[str]:
    """Of LoraAdapters that cannot be read: what replicas have of them stays as it is."""
    for resource in observed.adapters:
        if not isinstance(parse_lora_adapter(resource), LoraAdapter):
            yield text(resource, "spec", "servedName") or name(resource)


def sources(wanted: Sequence[WantedAdapter]) -> list[AdapterSource]:
    """What routers are told, in the order of the names."""
    usable = sorted((each for each in wanted if each.problem is None), key=lambda each: each.name)
    return [
        AdapterSource(
            name=each.name,
            source=each.source.source,
            revision=each.source.revision,
            on_demand=not each.is_everywhere,
        )
        for each in usable
    ]


def ready_records(replicas: Iterable[Replica]) -> list[ReplicaRecord]:
    """Records of the replicas that take traffic."""
    return [r.record for r in replicas if r.stage is Stage.READY and r.record is not None]
