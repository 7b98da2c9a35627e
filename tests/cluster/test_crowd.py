"""Two hundred deployments at once: time to converge, calls, memory, and what rest costs."""

import re
import time
from dataclasses import dataclass

import pytest

from tests.cluster.installation import SYSTEM, Installation
from tests.cluster.kube import MODEL_DEPLOYMENT, Object, conditions
from tests.cluster.model_deployments import NOWHERE, ModelDeployments
from tests.cluster.report import Report

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

DEPLOYMENTS = 200
SCENARIO = f"{DEPLOYMENTS} deployments at once"
# Every deployment is looked at anew once a minute (`resyncSeconds` in values.yaml).
REST_S = 60
# Nowhere to run: the control plane and the operator have all of the work, the nodes none.
SPEC: Object = {
    "model": {"source": "smollm2"},
    "resources": {"gpu": {"count": 0}, "cpu": "1m"},
    "podTemplate": NOWHERE,
}
# Children per deployment: workload, Service, ServiceAccount, Secret.
MAX_CALLS_PER_DEPLOYMENT = 20
MAX_RESIDENT_MIB = 300
MAX_CALLS_PER_MINUTE_AT_REST = 60


@dataclass(frozen=True)
class Sample:
    """The leader's own numbers at one moment."""

    time: float
    api_calls: float
    turns: float
    resident_mib: float

    @classmethod
    def take(cls, octavo: Installation) -> "Sample":
        path = f"/api/v1/namespaces/{SYSTEM}/pods/{octavo.leader}:8080/proxy/metrics"
        text = octavo.kube.kubectl("get", "--raw", path)

        def total(metric: str) -> float:
            pattern = rf"^{metric}(?:{{.*}})? (\S+)$"
            return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

        return cls(
            time=time.monotonic(),
            api_calls=total("octavo_operator_api_calls_total"),
            turns=total("octavo_operator_reconcile_seconds_count"),
            resident_mib=total("process_resident_memory_bytes") / 2**20,
        )


def test_two_hundred_deployments_converge_with_few_calls_and_rest_costs_almost_none(
    octavo: Installation, models: ModelDeployments, report: Report
) -> None:
    names = [f"crowd-{number:03d}" for number in range(DEPLOYMENTS)]
    before = Sample.take(octavo)

    def are_settled() -> bool:
        found = models.kube.list(MODEL_DEPLOYMENT, models.namespace)
        return len(found) == DEPLOYMENTS and all(map(_is_settled, found))

    with report.step(SCENARIO, "first applied to all settled"):
        for name in names:
            models.apply_exactly(name, SPEC)
        models.kube.wait("all settled", are_settled, seconds=300)
    settled = _at_rest(octavo)
    time.sleep(REST_S)
    rested = Sample.take(octavo)

    calls, turns = settled.api_calls - before.api_calls, settled.turns - before.turns
    with report.step(SCENARIO, "all deleted, nothing left"):
        models.delete_all(seconds=300)

    minutes = (rested.time - settled.time) / 60
    at_rest = (rested.api_calls - settled.api_calls) / minutes
    report.add(
        SCENARIO,
        api_calls_per_deployment=round(calls / DEPLOYMENTS, 1),
        api_calls_per_turn=round(calls / turns, 2),
        turns_per_deployment=round(turns / DEPLOYMENTS, 1),
        resident_mib={"before": round(before.resident_mib), "after": round(rested.resident_mib)},
        api_calls_per_minute_at_rest=round(at_rest, 1),
        turns_per_minute_at_rest=round((rested.turns - settled.turns) / minutes, 1),
    )
    assert calls / DEPLOYMENTS <= MAX_CALLS_PER_DEPLOYMENT
    assert rested.resident_mib <= MAX_RESIDENT_MIB
    assert at_rest <= MAX_CALLS_PER_MINUTE_AT_REST


def _is_settled(found: Object) -> bool:
    """Its pod is there, and the status says what it waits for."""
    known = conditions(found)
    degraded, ready = known.get("Degraded", {}), known.get("Ready", {})
    return (degraded.get("reason"), ready.get("status")) == ("Unschedulable", "False")


def _at_rest(octavo: Installation) -> Sample:
    """The first sample after ten seconds with no more calls than rest may have."""
    sample = Sample.take(octavo)
    deadline = sample.time + 120
    while True:
        time.sleep(10)
        later = Sample.take(octavo)
        num_calls = later.api_calls - sample.api_calls
        if num_calls <= MAX_CALLS_PER_MINUTE_AT_REST / 6 or later.time > deadline:
            return later
        sample = later
