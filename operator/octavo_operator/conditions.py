"""Conditions: what was found now, joined with what the status said before.

`lastTransitionTime` moves only when `status` does, and an event is due only where old and new
differ, so that a restart of the operator neither moves a time nor repeats an event.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from octavo_operator.desired import Event
from octavo_operator.objects import KubernetesObject, members
from octavo_operator.reasons import EXPECTED, Reason
from octavo_protocol.resources.status import BatchConditionType, Condition, ConditionType

ConditionStatus = Literal["True", "False", "Unknown"]
# The state that is worth a warning. A type that is not here is told about by neither.
_BAD: dict[str, ConditionStatus] = {
    ConditionType.READY: "False",
    ConditionType.VALID: "False",
    ConditionType.DEGRADED: "True",
    ConditionType.MODEL_CACHED: "False",
    ConditionType.FITS: "False",
    ConditionType.ADAPTERS_LOADED: "False",
    ConditionType.REGISTERED: "False",
    BatchConditionType.ACCEPTED: "False",
    BatchConditionType.FAILED: "True",
    BatchConditionType.COMPLETE: "Unknown",  # none is bad, and the good one is told
}
_MAX_MESSAGE = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition as it is found now."""

    type: str
    status: ConditionStatus
    reason: Reason
    message: str


def old_conditions(resource: KubernetesObject) -> dict[str, Condition]:
    """Conditions of the status that is there, by type; what cannot be read is left out."""
    found = {}
    for item in members(resource, "status", "conditions"):
        try:
            condition = Condition.model_validate(item)
        except ValidationError:
            continue
        found[condition.type] = condition
    return found


def joined(
    findings: Iterable[Finding], old: dict[str, Condition], generation: int, now: datetime
) -> list[Condition]:
    """The findings as conditions of `generation`, in their order."""
    return [_joined(finding, old.get(finding.type), generation, now) for finding in findings]


def _joined(
    finding: Finding, before: Condition | None, generation: int, now: datetime
) -> Condition:
    moved = before is None or before.status != finding.status
    message = finding.message
    if len(message) > _MAX_MESSAGE:
        message = f"{message[: _MAX_MESSAGE - 1]}…"
    return Condition(
        type=finding.type,
        status=finding.status,
        reason=finding.reason,
        message=message,
        observed_generation=generation,
        last_transition_time=now.replace(microsecond=0)
        if before is None or moved
        else before.last_transition_time,
    )


def transitions(new: Sequence[Condition], old: dict[str, Condition]) -> list[Event]:
    """An event for each condition that turned bad or good, or is bad for another reason."""
    return [event for each in new if (event := _transition(each, old.get(each.type)))]


def _transition(new: Condition, before: Condition | None) -> Event | None:
    bad = _BAD.get(new.type)
    if bad is None or new.status == "Unknown":
        return None
    if new.status == bad:
        is_known = _is_lost_readiness_known if new.type == ConditionType.READY else _is_told
        if is_known(new, before) or new.reason in EXPECTED:
            return None
        return Event("Warning", new.reason, new.message)
    if before is None and new.type != ConditionType.READY:
        return None
    if before is not None and before.status == new.status:
        return None
    return Event("Normal", new.reason, new.message)


def _is_told(new: Condition, before: Condition | None) -> bool:
    return before is not None and before.status == new.status and before.reason == new.reason


def _is_lost_readiness_known(new: Condition, before: Condition | None) -> bool:
    """What keeps replicas from becoming ready is told by `Degraded`; here, that none is left."""
    return before is None or before.status == new.status
