"""The autoscaler against numbers, and against a simulated day."""

import math
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.fakes.observations import (
    NAME,
    NOW,
    SETTINGS,
    applied,
    condition,
    deployment,
    later,
    observe,
    pod,
    record,
    settled,
    template_of,
    unschedulable,
)

from octavo_operator.decide import decide
from octavo_operator.names import DELETION_COST
from octavo_operator.observed import Observed, Recommendation
from octavo_operator.replicas import Failure, Replica, Stage
from octavo_operator.scaling import Load, deletion_costs, measured, scale, wanted
from octavo_protocol.resources.model_deployment import AutoscalingSpec

SPEC = AutoscalingSpec(min_replicas=1, max_replicas=10)
IDLE = Load(
    ready=2,
    recent=0,
    starting=0,
    coming_s=0.0,
    waiting_tokens=0,
    prefill_rate=1000.0,
    utilization=0.0,
)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (IDLE, 0),
        (replace(IDLE, waiting_tokens=2000), 1),
        (replace(IDLE, waiting_tokens=4000), 2),
        (replace(IDLE, waiting_tokens=4001), 3),
        (replace(IDLE, waiting_tokens=1_000_000), 4),
        (replace(IDLE, waiting_tokens=1_000_000, prefill_rate=0.0), 0),
        (replace(IDLE, utilization=1.4), 2),
        (replace(IDLE, utilization=1.41), 3),
        (replace(IDLE, utilization=2.0), 3),
    ],
)
def test_replicas_that_a_load_asks_for(load: Load, expected: int) -> None:
    assert wanted(load, SPEC)[0] == expected


def test_a_queue_that_grew_while_replicas_start_asks_for_no_more_of_them() -> None:
    """One replica of 1000 tokens/s gets 2000 tokens/s; the second one loads for a minute."""
    for second in range(60):
        load = Load(
            ready=1,
            recent=0,
            starting=1,
            coming_s=second,
            waiting_tokens=2000 + 1000 * second,
            prefill_rate=1000.0,
            utilization=1.0,
        )
        assert wanted(load, SPEC)[0] == 2


def test_numbers_come_from_records_of_ready_replicas_alone() -> None:
    replicas = [
        Replica(
            name="a",
            stage=Stage.READY,
            template="",
            record=record("a", waiting_tokens=100, running=32, kv_usage=0.2),
        ),
        Replica(
            name="b",
            stage=Stage.READY,
            template="",
            created=NOW - timedelta(seconds=100),
            ready_since=NOW - timedelta(seconds=40),
            record=record("b", waiting_tokens=50, prefill_tokens_per_s=0.0, kv_usage=0.7),
        ),
        Replica(name="c", stage=Stage.DRAINING, template="", record=record("c", waiting_tokens=7)),
        Replica(name="d", stage=Stage.LOADING, template="", created=NOW - timedelta(seconds=40)),
        Replica(
            name="e",
            stage=Stage.FAILED,
            template="",
            failure=Failure.CONTAINER_FAILED,
            created=NOW - timedelta(days=3),
        ),
        Replica(
            name="f",
            stage=Stage.PENDING,
            template="",
            failure=Failure.UNSCHEDULABLE,
            created=NOW - timedelta(days=1),
        ),
    ]

    load = measured(replicas, NOW, start_seconds=600)

    assert load.utilization == pytest.approx(1.2)
    assert replace(load, utilization=0.0) == Load(
        ready=2,
        recent=1,
        starting=2,
        coming_s=1200,
        waiting_tokens=150,
        prefill_rate=1000.0,
        utilization=0.0,
    )


def recommended(*numbers: tuple[float, int]) -> list[Recommendation]:
    """(seconds ago, replicas), oldest first."""
    return [Recommendation(NOW - timedelta(seconds=ago), number) for ago, number in numbers]


def test_more_replicas_come_only_when_the_whole_window_wanted_them() -> None:
    busy = replace(IDLE, utilization=2.0)

    assert scale(busy, SPEC, 2, recommended((9, 3)), NOW).replicas == 2 + 1
    assert scale(busy, SPEC, 2, recommended((20, 2), (9, 3)), NOW).replicas == 2
    assert scale(busy, SPEC, 2, recommended((20, 2), (11, 3)), NOW).replicas == 3
    assert scale(busy, SPEC, 2, (), NOW).replicas == 2


def test_fewer_replicas_come_only_when_the_whole_window_wanted_fewer() -> None:
    assert scale(IDLE, SPEC, 2, recommended((301, 2), (299, 1)), NOW).replicas == 2
    assert scale(IDLE, SPEC, 2, recommended((302, 2), (301, 1)), NOW).replicas == 1


def test_a_restart_forgets_the_windows_and_scales_nothing_at_once() -> None:
    assert scale(IDLE, SPEC, 8, (), NOW).replicas == 8
    assert scale(replace(IDLE, utilization=9.0), SPEC, 2, (), NOW).replicas == 2


def test_the_bounds_hold_at_once() -> None:
    assert scale(None, SPEC, 50, (), NOW).replicas == 10
    assert scale(None, AutoscalingSpec(min_replicas=3, max_replicas=4), 0, (), NOW).replicas == 3
    busy = replace(IDLE, ready=9, utilization=9.0)
    scaling = scale(busy, SPEC, 9, recommended((60, 10)), NOW)
    assert (scaling.replicas, scaling.wanted) == (10, 13)


def test_what_is_remembered_does_not_grow_at_rest() -> None:
    history: tuple[Recommendation, ...] = ()
    for second in range(2000):
        scaling = scale(IDLE, SPEC, 1, history, NOW + timedelta(seconds=second))
        history = scaling.recommendations

    assert len(history) <= 2


@dataclass
class Day:
    """A day of traffic on replicas that take a minute to start. One tick is five seconds."""

    tick_s = 5.0
    start_s = 60.0
    rate = 1000.0

    spec: AutoscalingSpec
    replicas: int = 1
    queue: float = 0.0

    def __post_init__(self) -> None:
        self.made: list[datetime] = []
        self.changes: list[tuple[datetime, int, int]] = []
        self.queue_seconds: list[float] = []
        self.history: tuple[Recommendation, ...] = ()

    def tick(self, now: datetime, tokens_per_s: float) -> None:
        load = self.serve(now, tokens_per_s)
        scaling = scale(load, self.spec, self.replicas, self.history, now)
        self.history = scaling.recommendations
        if scaling.replicas != self.replicas:
            self.changes.append((now, self.replicas, scaling.replicas))
            self.made += [now] * (scaling.replicas - self.replicas)
            self.replicas = scaling.replicas

    def serve(self, now: datetime, tokens_per_s: float) -> Load:
        ages = [age for made in self.made if (age := (now - made).total_seconds()) < 120]
        starting = sum(age < self.start_s for age in ages)
        ready = max(1, self.replicas - starting)
        work = self.queue + tokens_per_s * self.tick_s
        done = min(work, ready * self.rate * self.tick_s)
        self.queue = work - done
        self.queue_seconds.append(self.queue / (ready * self.rate))
        return Load(
            ready=ready,
            recent=min(ready, len(ages) - starting),
            starting=starting,
            coming_s=max(ages, default=0.0),
            waiting_tokens=int(self.queue),
            prefill_rate=self.rate,
            utilization=done / (self.rate * self.tick_s),
        )


def run_day(seed: int) -> Day:
    """Quiet nights, busy noons, noise, and four bursts of ten minutes at twice the rate."""
    rng = random.Random(seed)
    day = Day(AutoscalingSpec(min_replicas=1, max_replicas=20))
    bursts = [rng.uniform(0, 86400) for _ in range(4)]
    for tick in range(int(86400 / Day.tick_s)):
        second = tick * Day.tick_s
        level = 500 + 3500 * (1 - math.cos(2 * math.pi * second / 86400)) / 2
        level *= 2 if any(0 <= second - burst < 600 for burst in bursts) else 1
        day.tick(NOW + timedelta(seconds=second), max(0.0, rng.gauss(level, level / 10)))
    return day


@pytest.mark.parametrize("seed", range(3, 6))
def test_a_day_of_traffic_is_served_without_flapping(seed: int) -> None:
    day = run_day(seed)
    turns = [
        (later_time - time).total_seconds()
        for (time, a, b), (later_time, c, d) in zip(day.changes, day.changes[1:], strict=False)
        if (b - a) * (d - c) < 0 and d < c
    ]

    assert sorted(day.queue_seconds)[int(0.99 * len(day.queue_seconds))] < 2.0
    assert max(day.queue_seconds) < 30.0
    assert max(b for _, _, b in day.changes) <= 16
    assert len(day.changes) <= 40
    assert min(turns) >= 300


@pytest.mark.parametrize("level", [0.0, 350.0, 700.0, 1400.0, 2099.0, 6300.0])
def test_constant_load_ends_in_one_number(level: float) -> None:
    day = Day(AutoscalingSpec(min_replicas=1, max_replicas=20), replicas=20)
    for tick in range(2000):
        day.tick(NOW + timedelta(seconds=tick * Day.tick_s), level)

    assert day.replicas == max(1, math.ceil(level / 700 - 1e-6))
    assert all(time < NOW + timedelta(seconds=1200) for time, _, _ in day.changes)


AUTOSCALED: dict[str, Any] = {
    "autoscaling": {"minReplicas": 1, "maxReplicas": 4, "scaleUpWindowSeconds": 0}
}


def busy(observed: Observed, **load: int) -> Observed:
    return replace(observed, replicas=[record(r.replica_id, **load) for r in observed.replicas])


def workload_replicas(observed: Observed) -> int:
    workload = observed.child("Deployment", NAME)
    assert workload is not None
    number: int = workload["spec"]["replicas"]
    return number


def test_a_decision_is_recorded_once_with_its_numbers() -> None:
    observed = busy(later(settled(deployment(**AUTOSCALED), 1), 60), running=64)
    desired = decide(observed, SETTINGS)
    after = applied(observed, desired)

    assert workload_replicas(after) == 2
    assert desired.status["lastScaling"] == {
        "time": "2026-03-01T12:01:00Z",
        "fromReplicas": 1,
        "toReplicas": 2,
        "reason": "100% of KV cache or sequence slots of 1 replicas are in use; 70% is aimed at",
    }
    assert [(each.reason, each.message.split(":")[0]) for each in desired.events] == [
        ("ScaledUp", "1 to 2 replicas")
    ]
    again = decide(later(after, 1), SETTINGS)
    assert again.status["lastScaling"] == desired.status["lastScaling"]
    assert again.events == ()


def test_load_is_not_in_the_status() -> None:
    observed = later(settled(deployment(**AUTOSCALED), 1), 60)
    some = decide(busy(observed, running=1, waiting_tokens=20), SETTINGS)
    more = decide(busy(observed, running=30, waiting_tokens=900), SETTINGS)

    assert some.status == more.status
    assert condition(some, "Scaled") == ("True", "WithinBounds", "1 replicas, between 1 and 4")


def test_redis_away_keeps_the_number_of_replicas() -> None:
    observed = later(settled(deployment(**AUTOSCALED, replicas=3), 3), 3600)
    away = replace(observed, replicas=(), is_fleet_known=False)
    desired = decide(away, SETTINGS)

    assert workload_replicas(applied(away, desired)) == 3
    assert condition(desired, "Scaled")[:2] == ("Unknown", "NoMeasurements")


def test_at_the_maximum_the_condition_says_that_more_is_wanted() -> None:
    observed = busy(later(settled(deployment(**AUTOSCALED, replicas=4), 4), 60), running=64)
    desired = decide(observed, SETTINGS)

    assert condition(desired, "Scaled")[1] == "AtMaximum"
    assert decide(later(applied(observed, desired), 5), SETTINGS).status == desired.status


def test_written_replicas_are_only_where_autoscaling_starts() -> None:
    observed = settled(deployment(**AUTOSCALED, replicas=2), 2)
    resource = {**deployment(**AUTOSCALED, replicas=9), "status": observed.deployment["status"]}
    desired = decide(replace(observed, deployment=resource), SETTINGS)

    assert desired.status["desiredReplicas"] == 2


def test_no_replicas_wanted_stops_autoscaling_until_some_are() -> None:
    bounds = {"minReplicas": 2, "maxReplicas": 8}
    running = settled(deployment(autoscaling=bounds, replicas=4), 4)
    stopped = replace(running, deployment=deployment(autoscaling=bounds, replicas=0, generation=2))
    desired = decide(stopped, SETTINGS)
    gone = replace(applied(stopped, desired), pods=[], replicas=[])
    again = replace(gone, deployment=deployment(autoscaling=bounds, replicas=4, generation=3))

    assert desired.status["desiredReplicas"] == 0
    assert condition(decide(gone, SETTINGS), "Ready")[1] == "ScaledToZero"
    assert condition(decide(gone, SETTINGS), "Scaled") == ("", "", "")
    assert decide(again, SETTINGS).status["desiredReplicas"] == 4


def test_before_fewer_replicas_the_pods_are_told_their_cost_and_only_then() -> None:
    observed = settled(deployment(replicas=3), 3)
    records = [
        record(f"{NAME}-0", prefix_hit_tokens=50_000),
        record(f"{NAME}-1", prefix_hit_tokens=10, kv_usage=0.5),
        record(f"{NAME}-2"),
    ]
    fewer = {**deployment(replicas=1, generation=2), "status": observed.deployment["status"]}
    shrinking = replace(observed, deployment=fewer, replicas=records)
    desired = decide(shrinking, SETTINGS)
    after = applied(shrinking, desired)

    assert decide(replace(observed, replicas=records), SETTINGS).deletion_costs == {}
    assert desired.deletion_costs == {
        f"{NAME}-0": 50_001,
        f"{NAME}-1": 1 + 8000 + 10,
        f"{NAME}-2": 1,
    }
    assert after.pods[0]["metadata"]["annotations"] == {DELETION_COST: "50001"}
    assert decide(after, SETTINGS).deletion_costs == {}


def test_replicas_that_do_not_serve_cost_nothing() -> None:
    replicas = [
        Replica(name="a", stage=Stage.READY, template="", record=record("a")),
        Replica(name="b", stage=Stage.LOADING, template="", record=record("b")),
        Replica(name="c", stage=Stage.READY, template=""),
        Replica(name="d", stage=Stage.DRAINING, template="", record=record("d")),
    ]

    assert deletion_costs(replicas) == {"a": 1, "b": 0, "c": 0}


def test_pods_without_a_node_count_as_capacity_to_come() -> None:
    observed = later(settled(deployment(**AUTOSCALED, replicas=2), 1), 60)
    full = unschedulable("no GPU is free")
    coming = pod(f"{NAME}-1", template_of(observed), status=full, node="")
    desired = decide(
        busy(replace(observed, pods=[*observed.pods, coming]), running=64, waiting_tokens=5000),
        SETTINGS,
    )

    assert desired.status["desiredReplicas"] == 2


def test_the_operator_looks_again_only_while_a_window_runs() -> None:
    resting = later(settled(deployment(**AUTOSCALED), 1), 3600)
    first = decide(resting, SETTINGS)
    calm = decide(later(applied(resting, first), 3600), SETTINGS)
    high = observe(deployment(**AUTOSCALED, replicas=3))
    settling = later(settled(high.deployment, 3), 60)

    assert calm.look_again_s is None
    assert decide(settling, SETTINGS).look_again_s == 5.0
