"""The decision: from one observation of a ModelDeployment to all that is wanted of it. Pure.

which spec is served (intent) ─► how many replicas (scaling) ─► manifests (children)
                              └► names for the routers, adapters, status and events
"""

from collections.abc import Iterable, Sequence

from octavo_operator import adapter_status, adapters, names
from octavo_operator.children import model_cache
from octavo_operator.children.disruption_budget import disruption_budget
from octavo_operator.children.redis_secret import redis_secret
from octavo_operator.children.service import service
from octavo_operator.children.service_account import service_account
from octavo_operator.children.workload import KIND, workload
from octavo_operator.desired import Desired, Manifest, ObjectRef
from octavo_operator.findings import Picture
from octavo_operator.intent import Hold, Intent, intend
from octavo_operator.objects import label, members, name, number, text, time, value
from octavo_operator.observed import Observed
from octavo_operator.replicas import Replica, has_ended, replicas
from octavo_operator.scaling import Scaling, deletion_costs, measured, scale
from octavo_operator.settings import OperatorSettings
from octavo_operator.status import status
from octavo_protocol.records import DeploymentRecord
from octavo_protocol.resources.model_deployment import ModelDeployment

# How often the autoscaler looks while its windows run.
_SCALING_PERIOD_S = 5.0
# Kinds of children that a spec may stop wanting; the others are always there.
_OPTIONAL_KINDS = frozenset({"Job", "PersistentVolumeClaim", "PodDisruptionBudget"})


def decide(observed: Observed, settings: OperatorSettings) -> Desired:
    """What is wanted. Raises nothing, whatever the objects hold."""
    if value(observed.deployment, "metadata", "deletionTimestamp") is not None:
        return Desired(children=None, status=_status_as_it_is(observed))
    intent = intend(observed, settings)
    current = replicas(observed)
    scaling = _scaling(intent, current, observed)
    wanted = _wanted(intent, scaling)
    asked = [] if intent.served is None else adapters.wanted_adapters(intent.served, observed)
    children = _children(intent, wanted, observed, settings)
    picture = Picture(
        observed=observed,
        intent=intent,
        replicas=current,
        wanted=wanted,
        template=_template_hash(children, intent),
        scaling=scaling,
        adapters=asked,
        registration=_registration(intent, observed, asked),
    )
    whole_status, events = status(picture, settings)
    return Desired(
        children=children,
        removed=_removed(children, observed),
        status=whole_status,
        events=tuple(events),
        registration=picture.registration,
        deletion_costs=_deletion_costs(children, intent, wanted, current, observed),
        adapter_actions=()
        if intent.hold is Hold.PAUSED
        else adapters.actions(asked, current, observed),
        adapter_statuses=adapter_status.statuses(asked, current, observed),
        recommendations=() if scaling is None else scaling.recommendations,
        look_again_s=_look_again_s(intent, scaling, wanted),
    )


def _status_as_it_is(observed: Observed) -> Manifest:
    found = value(observed.deployment, "status")
    return dict(found) if isinstance(found, dict) else {}


def _scaling(intent: Intent, current: Sequence[Replica], observed: Observed) -> Scaling | None:
    """None without autoscaling, while nothing may change, and where no replicas are wanted."""
    served = intent.served
    if served is None or served.spec.autoscaling is None or intent.hold is Hold.PAUSED:
        return None
    if served.spec.replicas == 0:
        return None
    now = number(intent.workload, "spec", "replicas") or served.spec.replicas
    load = None
    if observed.is_fleet_known:
        load = measured(current, observed.now, served.spec.rollout.start_seconds)
    return scale(load, served.spec.autoscaling, now, observed.recommendations, observed.now)


def _wanted(intent: Intent, scaling: Scaling | None) -> int:
    """How many replicas there are to be."""
    if scaling is not None:
        return scaling.replicas
    is_free = intent.hold is not Hold.PAUSED or intent.workload is None
    planned = intent.served or intent.written
    if planned is not None and is_free:
        return planned.spec.replicas
    return number(intent.workload, "spec", "replicas")


def _template_hash(children: tuple[Manifest, ...] | None, intent: Intent) -> str:
    """Of the pods that are wanted: those that the workload is to make, or makes."""
    wanted = next((each for each in children or () if each["kind"] == KIND), intent.workload)
    return label(value(wanted, "spec", "template"), names.TEMPLATE_HASH)


def _children(
    intent: Intent, wanted: int, observed: Observed, settings: OperatorSettings
) -> tuple[Manifest, ...] | None:
    served, written = intent.served, intent.written
    is_waiting = intent.hold is Hold.WAITING_FOR_MODEL
    planned = served or (written if is_waiting else None)
    if planned is None or intent.hold is Hold.PAUSED:
        return None
    made = [
        service_account(planned),
        redis_secret(planned, settings),
        *_cache(written if is_waiting and written is not None else planned, intent, settings),
        None if served is None else workload(served, settings, wanted),
        service(planned),
        disruption_budget(planned, wanted, observed.served),
    ]
    return tuple(each for each in made if each is not None)


def _cache(
    deployment: ModelDeployment, intent: Intent, settings: OperatorSettings
) -> list[Manifest | None]:
    """The claim and the Job that fills it. A Job that failed long ago is left out once: removed,
    it is made again the next time.
    """
    fetched = intent.download
    is_due = fetched is not None and fetched.retry_s == 0
    job = None if is_due else model_cache.download_job(deployment, settings)
    return [model_cache.claim(deployment), job]


def _removed(children: tuple[Manifest, ...] | None, observed: Observed) -> tuple[ObjectRef, ...]:
    """Children that are not wanted any more; a claim stays until no pod mounts it."""
    if children is None:
        return ()
    kept = {(child["kind"], child["metadata"]["name"]) for child in children}
    kept |= {("PersistentVolumeClaim", claim) for claim in _mounted_claims(observed)}
    return tuple(
        ObjectRef(text(child, "apiVersion"), text(child, "kind"), name(child))
        for child in observed.children
        if text(child, "kind") in _OPTIONAL_KINDS and (text(child, "kind"), name(child)) not in kept
    )


def _mounted_claims(observed: Observed) -> Iterable[str]:
    """Claims that pods have, or will have when the workload makes others."""
    workload = observed.child(KIND, name(observed.deployment))
    pods = [each for each in observed.pods if not has_ended(each)]
    for pod in (*pods, value(workload, "spec", "template")):
        for volume in members(pod, "spec", "volumes"):
            yield text(volume, "persistentVolumeClaim", "claimName")


def _registration(
    intent: Intent, observed: Observed, asked: Sequence[adapters.WantedAdapter]
) -> DeploymentRecord | None:
    """None where no spec is known, so that nothing can be said."""
    planned = intent.served or intent.written
    if planned is None:
        return None
    created = time(observed.deployment, "metadata", "creationTimestamp")
    return DeploymentRecord(
        namespace=planned.metadata.namespace,
        deployment=planned.metadata.name,
        served_names=[
            each for each in planned.spec.served_names if each not in observed.owners_of_names
        ],
        policy=planned.spec.routing.policy,
        created_at=0.0 if created is None else created.timestamp(),
        adapters=adapters.sources(asked),
    )


def _deletion_costs(
    children: tuple[Manifest, ...] | None,
    intent: Intent,
    wanted: int,
    current: Sequence[Replica],
    observed: Observed,
) -> dict[str, int]:
    """Only when pods are about to be chosen for removal: at rest this costs no call."""
    if children is None or wanted >= number(intent.workload, "spec", "replicas"):
        return {}
    noted = {
        name(pod): text(pod, "metadata", "annotations", names.DELETION_COST)
        for pod in observed.pods
    }
    costs = deletion_costs(current)
    return {pod: cost for pod, cost in costs.items() if noted.get(pod) != str(cost)}


def _look_again_s(intent: Intent, scaling: Scaling | None, wanted: int) -> float | None:
    waits = []
    if intent.download is not None and intent.download.retry_s is not None:
        waits.append(max(1.0, intent.download.retry_s))
    if scaling is not None and any(each.replicas != wanted for each in scaling.recommendations):
        waits.append(_SCALING_PERIOD_S)
    return min(waits, default=None)
