"""What the operator wants for one ModelDeployment: all that `decide` gives, nothing done yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo_operator.observed import Recommendation
from octavo_protocol.records import DeploymentRecord
from octavo_protocol.resources.model_source import ModelSource

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """A Kubernetes Event to post: something changed that an owner may want to know."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A child to delete."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class AdapterAction:
    """Asks one replica to load or to unload an adapter. source: None unloads. in_place: in place of
    what it has under that name.
    """

    replica_id: str
    url: str
    adapter: str
    source: ModelSource | None
    in_place: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """children: whole manifests, applied with our field manager in this order; None: leave all
    children as they are (paused, being deleted, or nothing that could be planned was ever seen).
    removed: children that are no longer wanted; they are deleted after the others were applied.
    status: the whole status. events: transitions since the status that is there. registration:
    what the router is told; None: nothing. deletion_costs: pod name to the value of its annotation,
    to be set before the children are applied; empty unless the workload is about to shrink.
    adapter_actions: what replicas are asked; attempts at the same one are spaced by who asks.
    adapter_statuses: LoraAdapter name to its status. recommendations: the autoscaler's whole
    memory, to be observed the next time. look_again_s: when time alone may change the decision.
    """

    children: tuple[Manifest, ...] | None
    status: Manifest
    removed: tuple[ObjectRef, ...] = ()
    events: tuple[Event, ...] = ()
    registration: DeploymentRecord | None = None
    deletion_costs: Mapping[str, int] = field(default_factory=dict)
    adapter_actions: tuple[AdapterAction, ...] = ()
    adapter_statuses: Mapping[str, Manifest] = field(default_factory=dict)
    recommendations: tuple[Recommendation, ...] = ()
    look_again_s: float | None = None
