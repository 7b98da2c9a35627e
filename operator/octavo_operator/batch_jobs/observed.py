"""What the operator knows of one BatchJob when it decides, and what it wants for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from octavo_operator.desired import Event, Manifest
from octavo_operator.observed import KubernetesObject
from octavo_protocol.batch_record import BatchRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedBatchJob:
    """resource: the BatchJob itself. job: its Job, if that is there. pods: all of that Job. batch:
    its batch, where Redis of this installation has it.
    target_model: the served name of the ModelDeployment that the spec targets; None: there is none.
    apply_error: what the API server refused the last time.
    """

    now: datetime
    resource: KubernetesObject
    job: KubernetesObject | None = None
    pods: Sequence[KubernetesObject] = ()
    batch: BatchRecord | None = None
    target_model: str | None = None
    apply_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredBatchJob:
    """job: the Job to make; None: leave it as it is. stops_job: it is to try no more: what it would
    find is known. status: the whole status. is_over: the BatchJob itself is to be deleted.
    look_again_s: when time alone may change the decision.
    """

    status: Manifest
    job: Manifest | None = None
    events: tuple[Event, ...] = ()
    stops_job: bool = False
    is_over: bool = False
    look_again_s: float | None = None
