"""The status of a ModelDeployment: conditions, counts, and the events that lead to it.

The same observation gives the same status, so that a deployment at rest costs no write.
"""

from datetime import datetime

from pydantic import ValidationError

from octavo_operator import names
from octavo_operator.conditions import joined, old_conditions, transitions
from octavo_operator.desired import Event, Manifest
from octavo_operator.findings import Picture, findings
from octavo_operator.objects import name, number, text, value
from octavo_operator.observed import Observed
from octavo_operator.replicas import Replica, Stage
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.status import (
    CapacityStatus,
    ModelDeploymentStatus,
    ReplicaStatus,
    ScalingDecision,
)

_MAX_PODS_TOLD = 20


def status(picture: Picture, settings: OperatorSettings) -> tuple[Manifest, list[Event]]:
    """The whole status, and the events that lead from the old one to it."""
    observed, resource = picture.observed, picture.observed.deployment
    generation, old = number(resource, "metadata", "generation"), old_conditions(resource)
    conditions = joined(findings(picture), old, generation, observed.now)
    scaled = _scaling_decision(picture)
    told = [each for each in picture.replicas if each.stage is not Stage.READY]
    made = ModelDeploymentStatus(
        observed_generation=generation,
        replicas=len(picture.staying),
        desired_replicas=picture.wanted,
        ready_replicas=len(picture.ready),
        updated_replicas=len(picture.updated),
        selector=",".join(f"{key}={each}" for key, each in names.selector(name(resource)).items()),
        endpoint=_endpoint(observed, settings),
        capacity=_capacity(picture),
        last_scaling=scaled or _last_scaling(observed),
        pods=[_pod(each) for each in told[:_MAX_PODS_TOLD]],
        conditions=conditions,
    )
    events = transitions(conditions, old)
    if scaled is not None:
        events.append(_scaling_event(scaled))
    return made.model_dump(mode="json", by_alias=True, exclude_none=True), events


def _scaling_decision(picture: Picture) -> ScalingDecision | None:
    """The change that is made now, if one is."""
    if picture.scaling is None or picture.intent.workload is None:
        return None
    current = number(picture.intent.workload, "spec", "replicas")
    if current == picture.wanted:
        return None
    return ScalingDecision(
        time=_seconds(picture.observed.now),
        from_replicas=current,
        to_replicas=picture.wanted,
        reason=picture.scaling.reason,
    )


def _scaling_event(decision: ScalingDecision) -> Event:
    is_up = decision.to_replicas > decision.from_replicas
    message = f"{decision.from_replicas} to {decision.to_replicas} replicas: {decision.reason}"
    return Event("Normal", "ScaledUp" if is_up else "ScaledDown", message)


def _last_scaling(observed: Observed) -> ScalingDecision | None:
    try:
        return ScalingDecision.model_validate(value(observed.deployment, "status", "lastScaling"))
    except ValidationError:
        return None


def _capacity(picture: Picture) -> CapacityStatus | None:
    """Of all ready replicas; as it was while Redis does not tell."""
    if not picture.observed.is_fleet_known:
        try:
            return CapacityStatus.model_validate(
                value(picture.observed.deployment, "status", "capacity")
            )
        except ValidationError:
            return None
    records = [each.record for each in picture.ready if each.record is not None]
    if not records:
        return None
    return CapacityStatus(
        tokens=sum(each.num_blocks * each.block_size for each in records),
        sequences=sum(each.max_num_seqs for each in records),
    )


def _endpoint(observed: Observed, settings: OperatorSettings) -> str:
    """The router's API; without a router's URL the deployment's own Service."""
    metadata = value(observed.deployment, "metadata")
    service = f"http://{text(metadata, 'name')}.{text(metadata, 'namespace')}.svc"
    return f"{settings.router_url.rstrip('/') or service}/v1"


def _pod(replica: Replica) -> ReplicaStatus:
    return ReplicaStatus(
        name=replica.name, stage=replica.stage.value, message=replica.message or None
    )


def _seconds(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
