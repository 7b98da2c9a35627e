"""Which spec is to be served: the one that is written, or an older one while that cannot be.

The workload carries the spec that it was planned from. So an invalid spec, one that cannot fit, or
one whose model is still being fetched leaves everything planned from the last good one: it is
repaired, scaled and registered as before.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from octavo_operator.children.workload import KIND
from octavo_operator.download import Download, download
from octavo_operator.fit import Fit, check_fit
from octavo_operator.names import LAST_GOOD_SPEC
from octavo_operator.objects import KubernetesObject, name, text
from octavo_operator.observed import Observed
from octavo_operator.reasons import Reason
from octavo_operator.settings import OperatorSettings
from octavo_protocol.resources.base import FieldError
from octavo_protocol.resources.model_deployment import ModelDeployment
from octavo_protocol.resources.parse import parse_model_deployment


class Hold(StrEnum):
    """Why the written spec is not the one that is served."""

    INVALID = Reason.INVALID.value
    PAUSED = Reason.PAUSED.value
    DOES_NOT_FIT = Reason.DOES_NOT_FIT.value
    WAITING_FOR_MODEL = Reason.WAITING_FOR_MODEL.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """written: what the object says; None where it is invalid, as `errors` say. served: what the
    replicas are planned from; None: no replica can be planned. workload: as it is now.
    """

    written: ModelDeployment | None
    errors: tuple[FieldError, ...] = ()
    served: ModelDeployment | None = None
    hold: Hold | None = None
    fit: Fit | None = None
    download: Download | None = None
    workload: KubernetesObject | None = None


def intend(observed: Observed, settings: OperatorSettings) -> Intent:
    """What to serve."""
    workload = observed.child(KIND, name(observed.deployment))
    last_good = _last_good(observed, workload)
    written = parse_model_deployment(observed.deployment)
    if isinstance(written, list):
        return Intent(
            written=None,
            errors=tuple(written),
            served=last_good,
            hold=Hold.INVALID,
            workload=workload,
        )
    fit = check_fit(written, observed.facts, observed.gpu_memory_mib)
    fetched = download(written, observed, settings)
    hold = _hold(written, fit, fetched)
    if hold is Hold.DOES_NOT_FIT and last_good and _scaled_as(written, last_good) == written:
        hold = None  # the arithmetic came after the workload; what it serves, it goes on serving
    served: ModelDeployment | None = written
    if hold is Hold.PAUSED:
        served = last_good or written
    elif hold is not None:
        served = last_good and _scaled_as(written, last_good)
    return Intent(
        written=written, served=served, hold=hold, fit=fit, download=fetched, workload=workload
    )


def _hold(written: ModelDeployment, fit: Fit | None, fetched: Download | None) -> Hold | None:
    if written.spec.paused:
        return Hold.PAUSED
    if fit is not None and not fit.fits:
        return Hold.DOES_NOT_FIT
    if fetched is not None and not fetched.is_complete:
        return Hold.WAITING_FOR_MODEL
    return None


def _scaled_as(written: ModelDeployment, last_good: ModelDeployment) -> ModelDeployment:
    """The last good spec with the written number of replicas, which any spec can have."""
    number = {"replicas": written.spec.replicas, "autoscaling": written.spec.autoscaling}
    return last_good.model_copy(update={"spec": last_good.spec.model_copy(update=number)})


def _last_good(observed: Observed, workload: KubernetesObject | None) -> ModelDeployment | None:
    """The deployment as its workload was planned; None where that is not known."""
    kept = text(workload, "metadata", "annotations", LAST_GOOD_SPEC)
    if not kept:
        return None
    try:
        spec: Any = json.loads(kept)
    except ValueError:
        return None
    parsed = parse_model_deployment({**observed.deployment, "spec": spec})
    return None if isinstance(parsed, list) else parsed
