"""What is found of a ModelDeployment, a condition each, in sentences with names and numbers.

Nothing in them counts seconds or follows the load, so that the same observation is told alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo_operator.adapter_status import finding as adapters_finding
from octavo_operator.adapters import WantedAdapter
from octavo_operator.conditions import Finding
from octavo_operator.intent import Hold, Intent
from octavo_operator.objects import condition, text
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.replicas import Failure, Replica, Stage
from octavo_operator.scaling import Scaling
from octavo_protocol.records import DeploymentRecord
from octavo_protocol.resources.status import ConditionType

_MAX_ERRORS_TOLD = 5
_FAILURES = list(Failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that the status tells of. wanted: replicas there are to be. template: hash of the pod
    template of the served spec; empty where none is planned. scaling: None without autoscaling.
    """

    observed: Observed
    intent: Intent
    replicas: Sequence[Replica]
    wanted: int
    template: str
    scaling: Scaling | None
    adapters: Sequence[WantedAdapter]
    registration: DeploymentRecord | None

    @property
    def ready(self) -> list[Replica]:
        return [each for each in self.replicas if each.stage is Stage.READY]

    @property
    def staying(self) -> list[Replica]:
        """Those that are not about to end."""
        return [each for each in self.replicas if each.stage is not Stage.DRAINING]

    @property
    def updated(self) -> list[Replica]:
        return [each for each in self.staying if each.template == self.template]

    @property
    def worst(self) -> Replica | None:
        """The replica whose failure tells most."""
        failed = [each for each in self.staying if each.failure is not None]
        return min(failed, key=_severity, default=None)


def _severity(replica: Replica) -> tuple[int, str]:
    rank = len(_FAILURES) if replica.failure is None else _FAILURES.index(replica.failure)
    return rank, replica.name


def findings(picture: Picture) -> list[Finding]:
    """Every condition that there is something to say about."""
    found = [
        _ready(picture),
        _valid(picture.intent),
        _progressing(picture),
        _degraded(picture),
        _fits(picture.intent),
        _model_cached(picture.intent),
        _adapters_loaded(picture),
        _scaled(picture),
        _registered(picture),
    ]
    return [each for each in found if each is not None]


def _ready(picture: Picture) -> Finding:
    if taken := _taken(picture.observed):
        return Finding(ConditionType.READY, "False", Reason.NAME_TAKEN, taken)
    if not picture.ready:
        return Finding(ConditionType.READY, "False", *_why_not_ready(picture))
    is_current = picture.intent.hold in (None, Hold.PAUSED) and any(
        each.template == picture.template for each in picture.ready
    )
    reason = Reason.SERVING if is_current else Reason.SERVING_OLDER_SPEC
    message = f"{len(picture.ready)} of {picture.wanted} replicas take traffic"
    if not is_current:
        message += ", of an older spec"
    if not picture.observed.is_fleet_known:
        message += "; Redis does not answer, so this is the pods' own word"
    return Finding(ConditionType.READY, "True", reason, message)


def _why_not_ready(picture: Picture) -> tuple[Reason, str]:
    intent = picture.intent
    if not picture.replicas and intent.served is None and intent.hold is not None:
        return Reason(intent.hold), _hold_message(intent)
    if picture.wanted == 0:
        return Reason.SCALED_TO_ZERO, "no replicas are wanted"
    if (worst := picture.worst) is not None and worst.failure is not None:
        return Reason(worst.failure), f"{worst.name}: {worst.message}"
    if (refused := _refused(picture)) is not None:
        return Reason.PODS_REFUSED, refused
    if not picture.staying:
        return Reason.NO_REPLICA_READY, f"none of {picture.wanted} replicas has a pod yet"
    first = max(picture.staying, key=lambda each: (each.stage is Stage.LOADING, each.name))
    reason = Reason.LOADING if first.stage is Stage.LOADING else Reason.NO_REPLICA_READY
    return reason, f"none of {picture.wanted} replicas is ready; {first.name}: {first.message}"


def _hold_message(intent: Intent) -> str:
    """Why the written spec is not served."""
    match intent.hold:
        case Hold.INVALID:
            more = len(intent.errors) - _MAX_ERRORS_TOLD
            listed = "; ".join(str(each) for each in intent.errors[:_MAX_ERRORS_TOLD])
            return f"{listed}; and {more} more" if more > 0 else listed
        case Hold.DOES_NOT_FIT:
            return "" if intent.fit is None else intent.fit.message
        case Hold.WAITING_FOR_MODEL:
            return "" if intent.download is None else intent.download.message
        case Hold.PAUSED:
            return "spec.paused is true: nothing is changed until it is false"
    return ""


def _valid(intent: Intent) -> Finding:
    if intent.hold is not Hold.INVALID:
        return Finding(ConditionType.VALID, "True", Reason.VALID, "the spec can be planned")
    kept = "; the last valid spec is served" if intent.served is not None else ""
    return Finding(ConditionType.VALID, "False", Reason.INVALID, f"{_hold_message(intent)}{kept}")


def _progressing(picture: Picture) -> Finding:
    status, reason, message = _progress(picture)
    return Finding(ConditionType.PROGRESSING, "True" if status else "False", reason, message)


def _progress(picture: Picture) -> tuple[bool, Reason, str]:
    intent, wanted = picture.intent, picture.wanted
    if intent.hold is Hold.WAITING_FOR_MODEL:
        return True, Reason.WAITING_FOR_MODEL, _hold_message(intent)
    if intent.hold is Hold.PAUSED or intent.served is None:
        return False, Reason(intent.hold or Hold.INVALID), _hold_message(intent)
    if (stalled := _stalled(picture)) is not None:
        return False, Reason.STALLED, stalled
    ready = sum(each in picture.ready for each in picture.updated)
    old = len(picture.staying) - len(picture.updated)
    if old:
        told = f"{ready} of {wanted} replicas of the current spec are ready; {old} of older ones"
        return True, Reason.ROLLING_OUT, told
    if ready < wanted:
        return True, Reason.SCALING, f"{ready} of {wanted} replicas are ready"
    if len(picture.staying) > wanted:
        return True, Reason.SCALING, f"{len(picture.staying)} replicas become {wanted}"
    if draining := len(picture.replicas) - len(picture.staying):
        return True, Reason.DRAINING, f"{draining} replicas finish their requests"
    return False, Reason.COMPLETE, f"all {wanted} replicas are of the current spec and ready"


def _stalled(picture: Picture) -> str | None:
    """What the workload's controller gave up on."""
    progressing = condition(picture.intent.workload, "Progressing")
    if text(progressing, "reason") != "ProgressDeadlineExceeded":
        return None
    said = text(progressing, "message") or "no progress"
    return f"{said}; {picture.worst.name}: {picture.worst.message}" if picture.worst else said


def _refused(picture: Picture) -> str | None:
    """Why the workload's controller cannot make pods: a quota, admission."""
    failure = condition(picture.intent.workload, "ReplicaFailure")
    if text(failure, "status") != "True":
        return None
    # Each attempt is at a pod of another name, which the message has in it.
    return re.sub(r'pods? "[^"]+"', "pod", text(failure, "message")) or "no pod can be made"


def _degraded(picture: Picture) -> Finding:
    observed, fetched = picture.observed, picture.intent.download
    if observed.apply_errors:
        told = "; ".join(observed.apply_errors[:_MAX_ERRORS_TOLD])
        return Finding(ConditionType.DEGRADED, "True", Reason.APPLY_FAILED, told)
    if (worst := picture.worst) is not None and worst.failure is not None:
        failed = sum(each.failure is not None for each in picture.staying)
        told = f"{failed} of {len(picture.staying)} pods fail; {worst.name}: {worst.message}"
        return Finding(ConditionType.DEGRADED, "True", Reason(worst.failure), told)
    if (refused := _refused(picture)) is not None:
        return Finding(ConditionType.DEGRADED, "True", Reason.PODS_REFUSED, refused)
    if fetched is not None and fetched.reason in (
        Reason.DOWNLOAD_FAILED,
        Reason.DOWNLOAD_FAILING,
    ):
        return Finding(ConditionType.DEGRADED, "True", fetched.reason, fetched.message)
    if (stalled := _stalled(picture)) is not None:
        return Finding(ConditionType.DEGRADED, "True", Reason.STALLED, stalled)
    return Finding(ConditionType.DEGRADED, "False", Reason.NOTHING_FAILS, "nothing fails")


def _fits(intent: Intent) -> Finding | None:
    if intent.fit is None:
        return None
    if intent.fit.fits:
        return Finding(ConditionType.FITS, "True", Reason.FITS, intent.fit.message)
    return Finding(ConditionType.FITS, "False", Reason.DOES_NOT_FIT, intent.fit.message)


def _model_cached(intent: Intent) -> Finding | None:
    fetched = intent.download
    if fetched is None:
        return None
    type_, told = ConditionType.MODEL_CACHED, (fetched.reason, fetched.message)
    return Finding(type_, "True" if fetched.is_complete else "False", *told)


def _adapters_loaded(picture: Picture) -> Finding | None:
    if picture.adapters and not picture.observed.is_fleet_known:
        return _redis_unavailable(ConditionType.ADAPTERS_LOADED)
    return adapters_finding(picture.adapters, picture.replicas, picture.observed)


def _redis_unavailable(type_: ConditionType) -> Finding:
    return Finding(type_, "Unknown", Reason.REDIS_UNAVAILABLE, "Redis does not answer")


def _scaled(picture: Picture) -> Finding | None:
    scaling, spec = picture.scaling, picture.intent.served and picture.intent.served.spec
    if scaling is None or not spec or spec.autoscaling is None:
        return None
    lowest, most = spec.autoscaling.min_replicas, spec.autoscaling.max_replicas
    if scaling.wanted is None:
        told = f"no replica tells its load; {picture.wanted} replicas are kept"
        return Finding(ConditionType.SCALED, "Unknown", Reason.NO_MEASUREMENTS, told)
    if scaling.wanted > most and picture.wanted == most:
        told = f"{most} replicas are the most; the load asks for more"
        return Finding(ConditionType.SCALED, "True", Reason.AT_MAXIMUM, told)
    told = f"{picture.wanted} replicas, between {lowest} and {most}"
    return Finding(ConditionType.SCALED, "True", Reason.WITHIN_BOUNDS, told)


def _registered(picture: Picture) -> Finding | None:
    record = picture.registration
    if record is None:
        return None
    if taken := _taken(picture.observed):
        served = f"; routers serve it as {', '.join(record.served_names)}"
        told = taken + (served if record.served_names else "")
        return Finding(ConditionType.REGISTERED, "False", Reason.NAME_TAKEN, told)
    if not picture.observed.is_fleet_known:
        return _redis_unavailable(ConditionType.REGISTERED)
    told = f"routers serve it as {', '.join(record.served_names)}"
    return Finding(ConditionType.REGISTERED, "True", Reason.REGISTERED, told)


def _taken(observed: Observed) -> str:
    """Which served names older deployments have; empty where none."""
    owners: Mapping[str, str] = observed.owners_of_names
    return "; ".join(
        f"the name {each} belongs to the older deployment {owner}; give another in servedNames"
        for each, owner in sorted(owners.items())
    )
