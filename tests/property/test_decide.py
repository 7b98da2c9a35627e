"""`decide` over whatever there may be: it never raises, and it is satisfied with what it wanted."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.observations import (
    NAME,
    NOW,
    SETTINGS,
    applied,
    deployment,
    later,
    observe,
    pod,
    ready_pod,
    record,
    running,
    unschedulable,
    waiting,
)

from octavo_operator.decide import decide
from octavo_operator.desired import Desired, Manifest
from octavo_operator.observed import ModelFacts, Observed, Recommendation
from octavo_operator.scaling import Load, scale, wanted
from octavo_protocol.resources.model_deployment import AutoscalingSpec
from octavo_protocol.resources.status import ModelDeploymentStatus

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)
SOURCES = st.sampled_from(["smollm2", "hf://org/m", "pvc://claim/m", "s3://b/m"])
SPECS = st.fixed_dictionaries(
    {"model": st.fixed_dictionaries({"source": SOURCES})},
    optional={
        "replicas": st.integers(-1, 5),
        "paused": st.booleans(),
        "servedNames": st.lists(st.sampled_from(["a", "b", ""]), max_size=2, unique=True),
        "cache": st.sampled_from([{}, {"claim": {}}, {"nodePath": {"path": "/m"}}]),
        "autoscaling": st.fixed_dictionaries(
            {"maxReplicas": st.integers(1, 6)}, optional={"minReplicas": st.integers(1, 6)}
        ),
        "adapters": st.just([{"name": "sql", "model": {"source": "hf://o/sql"}}]),
        "resources": st.sampled_from([{}, {"gpu": {"count": 0}}, {"cpu": 4}]),
        "engine": st.sampled_from([{}, {"maxNumSeqs": 4}, {"maxModelLen": 0}]),
    },
)
STATUSES: st.SearchStrategy[Manifest] = st.one_of(
    st.booleans().map(lambda is_ready: running(is_ready=is_ready)),
    st.sampled_from(["ErrImagePull", "CrashLoopBackOff", "ContainerCreating"]).map(waiting),
    st.just(unschedulable("full")),
    st.sampled_from(["Failed", "Succeeded", "Unknown"]).map(lambda phase: {"phase": phase}),
    st.just({}),
)
RECORDS = st.builds(
    record,
    st.sampled_from([f"{NAME}-{i}" for i in range(4)]),
    ready=st.booleans(),
    draining=st.booleans(),
    waiting_tokens=st.integers(0, 10**6),
    kv_usage=st.floats(),
    running=st.integers(0, 100),
    prefill_tokens_per_s=st.floats(),
    adapters=st.lists(st.sampled_from(["sql", "old"]), max_size=2, unique=True),
)


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    """A deployment at any moment: any spec, any pods, whatever was decided before."""
    resource = deployment()
    resource["spec"] = draw(SPECS)
    observed = observe(
        resource,
        is_fleet_known=draw(st.booleans()),
        owners_of_names=draw(st.sampled_from([{}, {"a": "other/x"}])),
        facts=draw(st.none() | st.just(ModelFacts(10**11, 2.0, 10**5, 10**6, 8192))),
        gpu_memory_mib=draw(st.none() | st.just(81920)),
    )
    for _ in range(draw(st.integers(0, 2))):
        observed = applied(observed, decide(observed, SETTINGS))
        if draw(st.booleans()):
            observed = _with_ended_jobs(observed, draw(st.sampled_from(["Complete", "Failed"])))
        again = {**observed.deployment, "spec": draw(SPECS | st.just(resource["spec"]))}
        observed = replace(observed, deployment=again)
    template = draw(st.sampled_from(["", "x"]))
    pods = [
        pod(f"{NAME}-{i}", template, status=status, node=draw(st.sampled_from(["", "n"])))
        for i, status in enumerate(draw(st.lists(STATUSES, max_size=4)))
    ]
    records = draw(st.lists(RECORDS, max_size=4, unique_by=lambda each: each.replica_id))
    return replace(observed, pods=pods, replicas=records if observed.is_fleet_known else ())


def _with_ended_jobs(observed: Observed, type_: str) -> Observed:
    ended = {"conditions": [{"type": type_, "status": "True"}]}
    return replace(
        observed,
        children=[
            {**each, "status": ended} if each["kind"] == "Job" else each
            for each in observed.children
        ],
    )


def check(desired: Desired) -> None:
    """What holds of every decision."""
    json.dumps([desired.children, desired.status, dict(desired.adapter_statuses)])
    status = ModelDeploymentStatus.model_validate(desired.status)
    types = [each.type for each in status.conditions]
    assert len(types) == len(set(types))
    assert {"Ready", "Valid", "Progressing", "Degraded"} <= set(types)
    names = [(child["kind"], child["metadata"]["name"]) for child in desired.children or ()]
    assert len(names) == len(set(names))
    assert not {(each.kind, each.name) for each in desired.removed} & set(names)


@settings(max_examples=60, deadline=None)
@given(observations())
def test_a_decision_that_was_carried_out_is_final(observed: Observed) -> None:
    """A failed Job is removed first and made again next: two steps, so the third is the last."""
    first = decide(observed, SETTINGS)
    settled = applied(observed, first)
    settled = applied(settled, decide(settled, SETTINGS))
    second = decide(settled, SETTINGS)
    third = decide(applied(settled, second), SETTINGS)

    for each in (first, second, third):
        check(each)
    assert third.children == second.children
    assert third.status == second.status
    assert (second.events, third.events) == ((), ())
    assert third.removed == ()
    assert third.deletion_costs == {}


@settings(max_examples=60, deadline=None)
@given(observations(), st.floats(0, 3600))
def test_time_alone_changes_no_child_of_a_deployment_without_autoscaling(
    observed: Observed, seconds: float
) -> None:
    resource = dict(observed.deployment)
    resource["spec"] = {k: v for k, v in resource["spec"].items() if k != "autoscaling"}
    settled = replace(_with_ended_jobs(observed, "Complete"), deployment=resource)
    for _ in range(2):
        settled = applied(settled, decide(settled, SETTINGS))

    now, then = decide(settled, SETTINGS), decide(later(settled, seconds), SETTINGS)
    assert then.children == now.children
    assert then.status == now.status


ODD_PODS = st.fixed_dictionaries(
    {"metadata": st.fixed_dictionaries({"name": st.just("p"), "labels": st.just({})}) | JSON},
    optional={"status": JSON, "spec": JSON},
)
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": JSON, "state": JSON}, optional={"lastState": JSON, "restartCount": JSON}
    )
    | JSON,
    max_size=3,
)
LABELLED_STATUSES = st.fixed_dictionaries(
    {},
    optional={
        "phase": JSON,
        "conditions": JSON
        | st.lists(st.fixed_dictionaries({"type": st.just("Ready")}), max_size=1),
        "containerStatuses": CONTAINERS | JSON,
        "initContainerStatuses": JSON,
    },
)


@settings(max_examples=120, deadline=None)
@given(
    spec=SPECS | JSON,
    metadata=st.dictionaries(st.sampled_from(["labels", "generation", "annotations"]), JSON),
    old_status=st.dictionaries(
        st.sampled_from(["conditions", "lastScaling", "capacity"]), JSON, max_size=3
    ),
    pods=st.lists(ODD_PODS | LABELLED_STATUSES.map(lambda s: pod("q", status=s)), max_size=3),
    child_status=JSON,
    adapters=st.lists(
        st.fixed_dictionaries({"metadata": st.just({"name": "a"}), "spec": JSON}), max_size=2
    ),
)
def test_odd_objects_never_raise(
    spec: Any,
    metadata: Mapping[str, Any],
    old_status: Mapping[str, Any],
    pods: list[Any],
    child_status: Any,
    adapters: list[Any],
) -> None:
    good = observe(deployment(cache={"claim": {}}))
    good = applied(good, decide(good, SETTINGS))
    resource = {
        **good.deployment,
        "spec": spec,
        "status": old_status,
        "metadata": {**good.deployment["metadata"], **metadata},
    }
    children = [{**each, "status": child_status} for each in good.children]

    check(
        decide(
            observe(resource, pods=pods, children=children, adapters=adapters),
            SETTINGS,
        )
    )


LOADS = st.builds(
    Load,
    ready=st.integers(1, 50),
    recent=st.just(0),
    starting=st.integers(0, 20),
    coming_s=st.floats(0, 3600),
    waiting_tokens=st.integers(0, 10**9),
    prefill_rate=st.floats(0, 1e6),
    utilization=st.floats(0, 50),
)
AUTOSCALING = st.builds(
    lambda low, more, queue, use, up, down: AutoscalingSpec(
        min_replicas=low,
        max_replicas=low + more,
        target_queue_seconds=queue,
        target_utilization_percent=use,
        scale_up_window_seconds=up,
        scale_down_window_seconds=down,
    ),
    st.integers(1, 20),
    st.integers(0, 100),
    st.integers(1, 60),
    st.integers(1, 100),
    st.integers(0, 60),
    st.integers(0, 600),
)
HISTORIES = st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 100)), max_size=10).map(
    lambda items: [
        Recommendation(NOW - timedelta(seconds=ago), number)
        for ago, number in sorted(items, reverse=True)
    ]
)


@given(st.none() | LOADS, AUTOSCALING, st.integers(0, 500), HISTORIES)
def test_replicas_stay_within_the_bounds(
    load: Load | None, spec: AutoscalingSpec, current: int, history: list[Recommendation]
) -> None:
    number = scale(load, spec, current, history, NOW).replicas

    assert spec.min_replicas <= number <= spec.max_replicas


@given(LOADS, AUTOSCALING, st.integers(0, 10**6), st.floats(0, 10))
def test_more_load_never_asks_for_fewer(
    load: Load, spec: AutoscalingSpec, tokens: int, use: float
) -> None:
    more = replace(
        load,
        waiting_tokens=load.waiting_tokens + tokens,
        utilization=load.utilization + use,
    )

    assert wanted(more, spec)[0] >= wanted(load, spec)[0]


@given(LOADS, AUTOSCALING, st.integers(1, 50))
def test_an_unchanged_load_is_decided_once(load: Load, spec: AutoscalingSpec, current: int) -> None:
    """Whatever the windows: after they have run once, the number stays."""
    history: tuple[Recommendation, ...] = ()
    numbers = []
    for minute in range(40):
        scaling = scale(load, spec, current, history, NOW + timedelta(minutes=minute))
        current, history = scaling.replicas, scaling.recommendations
        numbers.append(current)

    changes = [a != b for a, b in pairwise(numbers)]
    assert sum(changes) <= 1
    assert not any(changes[12:])


def test_the_fakes_ready_pod_is_ready() -> None:
    made = observe(deployment(), pods=[ready_pod("chat-0")], replicas=[record("chat-0")])

    assert decide(made, SETTINGS).status["readyReplicas"] == 1
